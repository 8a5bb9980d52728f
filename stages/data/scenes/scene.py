"""One scene: what is in it, and how it is drawn."""

from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from stages.data.scenes.digits import DIGITS, GLYPH_SIDE, glyphs
from stages.data.scenes.grounds import photograph, texture
from stages.data.scenes.shapes import SHAPES
from stages.data.voc import VOID

CLASSES = ("background", *DIGITS, *SHAPES)

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

# Radii as shares of the scene's side. Smaller objects are not learned in an hour on a CPU.
SIZES = {"small": (0.14, 0.17), "medium": (0.195, 0.24), "large": (0.26, 0.31)}


@dataclass(frozen=True)
class Style:
    """What a split's scenes have in common."""

    side: int = 80
    objects: tuple[int, int] = (1, 3)
    zoom: tuple[float, float] = (1.0, 1.0)
    photographs: float = 0.65  # share of scenes on a photograph, the others on a texture


@dataclass(frozen=True)
class SceneObject:
    """One object: its name, looks and place. Lengths are in pixels, the angle in radians."""

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
    """`image` `(side, side, 3)` uint8; `mask` `(side, side)` uint8 of class indices, 255 on borders."""

    image: np.ndarray
    mask: np.ndarray
    objects: tuple[SceneObject, ...]
    ground: str


def draw_scene(rng: np.random.Generator, writers: str, style: Style = Style()) -> Scene:
    """Draw one scene with digits from one block of writers (`digits.WRITERS`)."""
    ground, canvas = draw_background(rng, style)
    things = _arrange(rng, style)
    mask = paint_objects(rng, canvas, things, writers)
    return Scene(to_uint8(canvas), mask, things, ground)


def draw_background(rng: np.random.Generator, style: Style) -> tuple[str, np.ndarray]:
    """What lies behind the things: its kind, and a canvas `(side, side, 3)` float32 in 0..1."""
    ground = "photograph" if rng.random() < style.photographs else "texture"
    return ground, (photograph if ground == "photograph" else texture)(rng, style.side).astype(np.float32)


def paint_objects(
    rng: np.random.Generator, canvas: np.ndarray, things: tuple[SceneObject, ...], writers: str
) -> np.ndarray:
    """Lay things on a canvas, in place, one after another; returns their mask `(side, side)` uint8."""
    mask = np.zeros(canvas.shape[:2], np.uint8)
    for thing in things:
        _paint(rng, canvas, mask, thing, writers)
    return mask


def to_uint8(canvas: np.ndarray) -> np.ndarray:
    """uint8 of a canvas in 0..1."""
    return (canvas * 255 + 0.5).astype(np.uint8)


def _arrange(rng: np.random.Generator, style: Style) -> tuple[SceneObject, ...]:
    """Things that hardly touch, largest first; fewer than drawn where there is no room."""
    low, high = style.objects
    names = rng.choice(CLASSES[1:], size=rng.integers(low, high + 1), replace=False)
    sizes = sorted(rng.choice(list(SIZES), size=len(names)), key=lambda size: -SIZES[size][0])
    zoom = rng.uniform(*style.zoom)
    things: list[SceneObject] = []
    for name, size in zip(names, sizes, strict=True):
        radius = style.side * zoom * rng.uniform(*SIZES[size])
        place = _free_place(rng, style.side, radius, things)
        if place is None:
            continue
        turn = rng.uniform(-0.35, 0.35) if name in DIGITS else rng.uniform(-np.pi, np.pi)
        color = str(rng.choice(list(COLORS)))
        things.append(SceneObject(str(name), color, str(size), radius, *place, turn))
    return tuple(things)


def _free_place(rng, side, radius, things) -> tuple[float, float] | None:
    margin = min(radius * 0.85, side / 2)
    for _ in range(30):
        x, y = rng.uniform(margin, side - margin, 2)
        if all(np.hypot(x - other.x, y - other.y) > 0.92 * (radius + other.radius) for other in things):
            return float(x), float(y)
    return None


def _paint(rng, canvas, mask, thing: SceneObject, writers: str) -> None:
    """Lay one thing on the canvas (its shadow first) and its label and void border on the mask."""
    window = _window(thing, mask.shape[0])
    canvas, mask = canvas[window], mask[window]
    x, y = _local(thing, window)
    depth = _depth_in_glyph(rng, x, y, thing, writers) if thing.name in DIGITS else -SHAPES[thing.name](x, y)
    depth = depth * thing.radius  # pixels inside the edge
    cover = np.clip(depth + 0.5, 0, 1)
    shadow = np.zeros_like(cover)
    shadow[2:, 2:] = ndimage.gaussian_filter(cover, 1.8, truncate=2.5)[:-2, :-2]
    canvas *= 1 - 0.45 * (shadow * (1 - cover))[..., None]
    canvas += cover[..., None] * (_surface(rng, x, y, depth, thing) - canvas)
    inside = depth > 0
    mask[ndimage.binary_dilation(inside) & ~inside] = VOID
    mask[inside] = thing.label


def _window(thing: SceneObject, side: int) -> tuple[slice, slice]:
    """Rows and columns that the thing and its shadow can reach."""
    reach = 1.2 * thing.radius + 7

    def span(center):
        return slice(max(0, int(center - reach)), min(side, int(center + reach) + 1))

    return span(thing.y), span(thing.x)


def _local(thing: SceneObject, window) -> tuple[np.ndarray, np.ndarray]:
    """Pixel centers of a window in the thing's own turned, unit-radius coordinates."""
    rows, columns = np.mgrid[window].astype(np.float32) + 0.5
    x, y = (columns - thing.x) / thing.radius, (rows - thing.y) / thing.radius
    cos, sin = np.float32(np.cos(thing.angle)), np.float32(np.sin(thing.angle))
    return x * cos + y * sin, y * cos - x * sin


def _depth_in_glyph(rng, x, y, thing: SceneObject, writers: str) -> np.ndarray:
    """Roughly the distance inside a digit's stroke, in radii: ink over 0.5, scaled by the slope of its edge."""
    scans = glyphs(writers)[DIGITS.index(thing.name)]
    ink = scans[rng.integers(len(scans))]
    center, scale = (GLYPH_SIDE - 1) / 2, 24.0  # the 8x8 scan's half height, in glyph pixels
    sampled = ndimage.map_coordinates(ink, [y * scale + center, x * scale + center], order=1)
    return (sampled - 0.45) * 0.36


def _surface(rng, x, y, depth, thing: SceneObject) -> np.ndarray:
    """Color of every pixel of a thing: its tone, lit from above, patterned, perhaps with an outline."""
    tone = np.clip(np.array(COLORS[thing.color]) + rng.normal(0, 0.025, 3), 0, 1)
    pattern = rng.choice(["plain", "plain", "stripes", "dots"])
    light = 1.04 - 0.13 * (y * np.cos(thing.angle) + x * np.sin(thing.angle))
    if pattern == "stripes":
        light = light - 0.16 * (np.sin(x * rng.uniform(8, 13)) > 0.25)
    elif pattern == "dots":
        light = light - 0.16 * (np.sin(x * 10) * np.sin(y * 10) > 0.45)
    surface = tone * light[..., None]
    if rng.random() < 0.4:
        width = 0.4 + 0.05 * thing.radius  # of the outline, in pixels
        edge = np.clip(width + 0.5 - depth, 0, 1)[..., None]
        surface = surface + edge * (tone * 0.35 - surface)
    return np.clip(surface, 0, 1)
