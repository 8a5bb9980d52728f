"""Draw a scene: colored digits and shapes on a background, with a mask of class indices."""

from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from stages.data.scenes.backgrounds import photograph, texture
from stages.data.scenes.digits import DIGITS, GLYPH_SIDE, GLYPH_UNIT, glyphs
from stages.data.scenes.shapes import SHAPES
from stages.data.voc import VOID

CLASSES = ("background", *DIGITS, *SHAPES)

# RGB in 0..1. Colors and sizes are drawn by index: keep the order.
COLORS = {
    "red": (0.84, 0.14, 0.16),
    "orange": (0.96, 0.52, 0.10),
    "yellow": (0.98, 0.86, 0.22),
    "green": (0.18, 0.62, 0.28),
    "blue": (0.14, 0.36, 0.80),
    "purple": (0.47, 0.22, 0.66),
    "pink": (0.97, 0.56, 0.73),
    "white": (0.96, 0.96, 0.94),
}

# Ranges of radii as shares of the scene's side. Smaller objects are not learned in an hour on a CPU.
SIZES = {"small": (0.14, 0.17), "medium": (0.195, 0.24), "large": (0.26, 0.31)}


@dataclass(frozen=True)
class Style:
    """Properties that the scenes of a data set share."""

    side: int = 80  # pixels
    objects: tuple[int, int] = (1, 3)  # least and greatest number per scene
    zoom: tuple[float, float] = (1.0, 1.0)  # range of a factor on all radii of a scene
    photographs: float = 0.65  # share of scenes on a photograph; the rest are on a texture


@dataclass(frozen=True)
class SceneObject:
    """A digit or shape. Lengths are in pixels, the angle in radians."""

    name: str
    color: str
    size: str
    radius: float
    x: float
    y: float
    angle: float

    @property
    def label(self) -> int:
        return CLASSES.index(self.name)


@dataclass(frozen=True)
class Scene:
    """A drawn scene.

    `image` is `(side, side, 3)` uint8; `mask` is `(side, side)` uint8 with class indices and 255 on object borders;
    `background` is "photograph" or "texture".
    """

    image: np.ndarray
    mask: np.ndarray
    objects: tuple[SceneObject, ...]
    background: str


def draw_scene(rng: np.random.Generator, writers: str, style: Style = Style()) -> Scene:
    """Draw a scene with digits from one block of writers (`digits.WRITERS`)."""
    background, canvas = draw_background(rng, style)
    objects = _arrange(rng, style)
    mask = paint_objects(rng, canvas, objects, writers)
    return Scene(to_uint8(canvas), mask, objects, background)


def draw_background(rng: np.random.Generator, style: Style) -> tuple[str, np.ndarray]:
    """Return the kind of a background, and a canvas `(side, side, 3)` float32 in 0..1 with its pixels."""
    kind = "photograph" if rng.random() < style.photographs else "texture"
    draw = photograph if kind == "photograph" else texture
    return kind, draw(rng, style.side).astype(np.float32)


def paint_objects(
    rng: np.random.Generator, canvas: np.ndarray, objects: tuple[SceneObject, ...], writers: str
) -> np.ndarray:
    """Paint objects on a canvas, in place and in order; return their mask `(side, side)` uint8."""
    mask = np.zeros(canvas.shape[:2], np.uint8)
    for obj in objects:
        _paint_object(rng, canvas, mask, obj, writers)
    return mask


def to_uint8(canvas: np.ndarray) -> np.ndarray:
    """Convert a canvas in 0..1 to uint8."""
    return (canvas * 255 + 0.5).astype(np.uint8)


def _arrange(rng: np.random.Generator, style: Style) -> tuple[SceneObject, ...]:
    """Draw objects that hardly overlap, largest first. An object for which there is no room is left out."""
    low, high = style.objects
    names = rng.choice(CLASSES[1:], size=rng.integers(low, high + 1), replace=False)
    sizes = sorted(rng.choice(list(SIZES), size=len(names)), key=lambda size: -SIZES[size][0])
    zoom = rng.uniform(*style.zoom)
    objects: list[SceneObject] = []
    for name, size in zip(names, sizes, strict=True):
        radius = style.side * zoom * rng.uniform(*SIZES[size])
        position = _free_position(rng, style.side, radius, objects)
        if position is None:
            continue
        # Digits stay almost upright, so that a six does not look like a nine.
        angle = rng.uniform(-0.35, 0.35) if name in DIGITS else rng.uniform(-np.pi, np.pi)
        color = str(rng.choice(list(COLORS)))
        objects.append(SceneObject(str(name), color, str(size), radius, *position, angle))
    return tuple(objects)


def _free_position(
    rng: np.random.Generator, side: int, radius: float, objects: list[SceneObject]
) -> tuple[float, float] | None:
    """Draw a center whose disc hardly overlaps the objects' discs; None after 30 failures."""
    margin = min(radius * 0.85, side / 2)
    for _ in range(30):
        x, y = rng.uniform(margin, side - margin, 2)
        if all(np.hypot(x - obj.x, y - obj.y) > 0.92 * (radius + obj.radius) for obj in objects):
            return float(x), float(y)
    return None


def _paint_object(
    rng: np.random.Generator, canvas: np.ndarray, mask: np.ndarray, obj: SceneObject, writers: str
) -> None:
    """Paint an object's shadow and surface on the canvas, and its label and void border on the mask, in place."""
    window = _window(obj, mask.shape[0])
    canvas = canvas[window]  # views: writing to them changes the arguments
    mask = mask[window]
    x, y = _object_coordinates(obj, window)
    depth = _depth_in_glyph(rng, x, y, obj, writers) if obj.name in DIGITS else -SHAPES[obj.name](x, y)
    depth = depth * obj.radius  # pixels inside the edge; negative outside
    coverage = np.clip(depth + 0.5, 0, 1)  # antialiased: the edge is one pixel wide
    shadow = np.zeros_like(coverage)
    shadow[2:, 2:] = ndimage.gaussian_filter(coverage, 1.8, truncate=2.5)[:-2, :-2]  # blurred, 2 pixels down and right
    canvas *= 1 - 0.45 * (shadow * (1 - coverage))[..., None]
    canvas += coverage[..., None] * (_surface(rng, x, y, depth, obj) - canvas)
    inside = depth > 0
    mask[ndimage.binary_dilation(inside) & ~inside] = VOID
    mask[inside] = obj.label


def _window(obj: SceneObject, side: int) -> tuple[slice, slice]:
    """Rows and columns that an object and its shadow can reach."""
    reach = 1.2 * obj.radius + 7

    def span(center: float) -> slice:
        return slice(max(0, int(center - reach)), min(side, int(center + reach) + 1))

    return span(obj.y), span(obj.x)


def _object_coordinates(obj: SceneObject, window: tuple[slice, slice]) -> tuple[np.ndarray, np.ndarray]:
    """Coordinates x and y of a window's pixel centers, in the object's own frame: rotated, with its radius as unit."""
    rows, columns = np.mgrid[window].astype(np.float32) + 0.5
    x = (columns - obj.x) / obj.radius
    y = (rows - obj.y) / obj.radius
    cos = np.float32(np.cos(obj.angle))
    sin = np.float32(np.sin(obj.angle))
    return x * cos + y * sin, y * cos - x * sin


def _depth_in_glyph(
    rng: np.random.Generator, x: np.ndarray, y: np.ndarray, obj: SceneObject, writers: str
) -> np.ndarray:
    """Approximate distance inside a digit's stroke, in radii."""
    scans = glyphs(writers)[DIGITS.index(obj.name)]
    ink = scans[rng.integers(len(scans))]
    center = (GLYPH_SIDE - 1) / 2
    sampled = ndimage.map_coordinates(ink, [y * GLYPH_UNIT + center, x * GLYPH_UNIT + center], order=1)
    # Ink falls from 1 to 0 across the edge; its slope there turns it into a distance. The stroke's edge is at 0.5 ink:
    # 0.45 widens thin strokes a little.
    return (sampled - 0.45) * 0.36


def _surface(rng: np.random.Generator, x: np.ndarray, y: np.ndarray, depth: np.ndarray, obj: SceneObject) -> np.ndarray:
    """RGB of every pixel of an object: its color, lit from above, with a pattern and an outline at random."""
    tone = np.clip(np.array(COLORS[obj.color]) + rng.normal(0, 0.025, 3), 0, 1)
    pattern = rng.choice(["plain", "plain", "stripes", "dots"])
    light = 1.04 - 0.13 * (y * np.cos(obj.angle) + x * np.sin(obj.angle))
    if pattern == "stripes":
        light = light - 0.16 * (np.sin(x * rng.uniform(8, 13)) > 0.25)
    elif pattern == "dots":
        light = light - 0.16 * (np.sin(x * 10) * np.sin(y * 10) > 0.45)
    surface = tone * light[..., None]
    if rng.random() < 0.4:
        width = 0.4 + 0.05 * obj.radius  # of the outline, in pixels
        edge = np.clip(width + 0.5 - depth, 0, 1)[..., None]
        surface = surface + edge * (tone * 0.35 - surface)
    return np.clip(surface, 0, 1)
