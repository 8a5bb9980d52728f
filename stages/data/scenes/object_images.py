"""Images of a single object, on which classifiers are fine-tuned.

The digits come from writers of their own, and the images are harder than scenes: objects are cut off by the frame,
low in contrast and noisy, so that a ViT pretrained on scenes still has something to learn.
"""

from dataclasses import dataclass

import numpy as np

from stages.data.scenes.digits import DIGITS
from stages.data.scenes.scene import COLORS, SIZES, Scene, SceneObject, Style, draw_background, paint_objects, to_uint8

STYLE = Style(objects=(1, 1), zoom=(0.75, 1.3), photographs=0.8)


@dataclass(frozen=True)
class Camera:
    """Ranges from which the distortion of an image is drawn, for pixels in 0..1."""

    contrast: tuple[float, float] = (0.4, 0.95)  # factor
    brightness: tuple[float, float] = (0.0, 0.3)  # added to every pixel
    noise: tuple[float, float] = (0.0, 0.05)  # standard deviation
    margin: float = 0.7  # least distance from an object's center to the frame, in radii: below 1 it may be cut off


def draw_object_image(rng: np.random.Generator, name: str, writers: str, camera: Camera = Camera()) -> Scene:
    """Draw an image of one object of class `name`, with digits from one block of writers (`digits.WRITERS`)."""
    background, canvas = draw_background(rng, STYLE)
    obj = _draw_object(rng, name, camera)
    mask = paint_objects(rng, canvas, (obj,), writers)
    canvas = canvas * rng.uniform(*camera.contrast) + rng.uniform(*camera.brightness)
    canvas += rng.normal(0, rng.uniform(*camera.noise), canvas.shape)
    return Scene(to_uint8(canvas.clip(0, 1)), mask, (obj,), background)


def _draw_object(rng: np.random.Generator, name: str, camera: Camera) -> SceneObject:
    size = str(rng.choice(list(SIZES)))
    radius = STYLE.side * rng.uniform(*STYLE.zoom) * rng.uniform(*SIZES[size])
    margin = camera.margin * radius
    x, y = rng.uniform(margin, STYLE.side - margin, 2)
    # Digits stay upright enough to be told apart; shapes turn freely.
    angle = rng.uniform(-0.6, 0.6) if name in DIGITS else rng.uniform(-np.pi, np.pi)
    color = str(rng.choice(list(COLORS)))
    return SceneObject(name, color, size, radius, float(x), float(y), angle)
