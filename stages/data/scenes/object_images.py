"""One thing a picture, as a data set of pets has one animal: what classifiers are fine-tuned on.

Writers of its own, and a camera less kind than the scenes': things are cut off by the frame, faded and grainy, so
that a ViT pretrained on scenes has something left to learn.
"""

from dataclasses import dataclass

import numpy as np

from stages.data.scenes.digits import DIGITS
from stages.data.scenes.scene import COLORS, SIZES, Scene, SceneObject, Style, draw_background, paint_objects, to_uint8

STYLE = Style(objects=(1, 1), zoom=(0.75, 1.3), photographs=0.8)


@dataclass(frozen=True)
class Camera:
    """Ranges that a picture's own values are drawn from, for pixels in 0..1."""

    contrast: tuple[float, float] = (0.4, 0.95)
    lift: tuple[float, float] = (0.0, 0.3)  # added to every pixel
    grain: tuple[float, float] = (0.0, 0.05)  # standard deviation of the noise
    inside: float = 0.7  # radii between a thing's center and the frame, at least


def draw_object_image(rng: np.random.Generator, name: str, writers: str, camera: Camera = Camera()) -> Scene:
    """A picture of one thing of class `name`, digits by one block of writers (`digits.WRITERS`)."""
    ground, canvas = draw_background(rng, STYLE)
    thing = _thing(rng, name, camera)
    mask = paint_objects(rng, canvas, (thing,), writers)
    canvas = canvas * rng.uniform(*camera.contrast) + rng.uniform(*camera.lift)
    canvas += rng.normal(0, rng.uniform(*camera.grain), canvas.shape)
    return Scene(to_uint8(canvas.clip(0, 1)), mask, (thing,), ground)


def _thing(rng: np.random.Generator, name: str, camera: Camera) -> SceneObject:
    size = str(rng.choice(list(SIZES)))
    radius = STYLE.side * rng.uniform(*STYLE.zoom) * rng.uniform(*SIZES[size])
    margin = camera.inside * radius
    x, y = rng.uniform(margin, STYLE.side - margin, 2)
    turn = rng.uniform(-0.6, 0.6) if name in DIGITS else rng.uniform(-np.pi, np.pi)
    return SceneObject(name, str(rng.choice(list(COLORS))), size, radius, float(x), float(y), turn)
