"""What lies behind the objects: crops of two photographs, or a woven, striped or clouded texture."""

from functools import cache

import numpy as np
from PIL import Image
from scipy import ndimage
from sklearn.datasets import load_sample_images


@cache
def photographs() -> tuple[Image.Image, ...]:
    """scikit-learn's two bundled photographs: a temple and a flower (CC BY)."""
    return tuple(Image.fromarray(image) for image in load_sample_images().images)


def photograph(rng: np.random.Generator, side: int) -> np.ndarray:
    """A random square of a photograph, softened so that objects stand out; `(side, side, 3)` float32, 0..1."""
    photo = photographs()[rng.integers(2)]
    reach = int(rng.integers(side, min(photo.size) + 1))
    left, top = (int(rng.integers(0, length - reach + 1)) for length in photo.size)
    crop = photo.resize((side, side), Image.Resampling.BOX, box=(left, top, left + reach, top + reach))
    pixels = np.asarray(crop, np.float32) / 255
    gray = pixels.mean(axis=2, keepdims=True)
    pixels = gray + (pixels - gray) * rng.uniform(0.35, 0.8)
    return np.clip(0.5 + (pixels - 0.5) * rng.uniform(0.45, 0.8) + rng.uniform(-0.12, 0.12), 0, 1)


def texture(rng: np.random.Generator, side: int) -> np.ndarray:
    """Two related muted tones mixed by a pattern; `(side, side, 3)` float32, 0..1."""
    first = rng.uniform(0.25, 0.75) + rng.uniform(-0.12, 0.12, 3)
    second = first + rng.choice([-1, 1]) * rng.uniform(0.06, 0.16) + rng.uniform(-0.04, 0.04, 3)
    share = _PATTERNS[rng.integers(len(_PATTERNS))](rng, side)[..., None]
    grain = rng.normal(0, 0.012, (side, side, 1))
    return np.clip(first + (second - first) * share + grain, 0, 1).astype(np.float32)


def _clouds(rng, side):
    octaves = [
        ndimage.zoom(rng.random((cells + 1, cells + 1)), side / (cells + 1), order=1, grid_mode=True, mode="nearest")
        for cells in (3, 7, 15)
    ]
    return sum(weight * octave for weight, octave in zip((0.55, 0.3, 0.15), octaves, strict=True))


def _stripes(rng, side):
    return 0.5 + 0.5 * np.sin(_along(rng, side) * 2 * np.pi * rng.uniform(3, 8))


def _weave(rng, side):
    period, (y, x) = 2 * np.pi * rng.uniform(3, 7), np.mgrid[:side, :side] / side
    return 0.5 + 0.5 * np.sin(x * period) * np.sin(y * period)


def _slope(rng, side):
    return np.clip(_along(rng, side) * 0.7 + 0.5, 0, 1)


def _along(rng, side):
    """Distance along a random direction, 0 in the middle, in sides."""
    angle, (y, x) = rng.uniform(0, np.pi), np.mgrid[:side, :side] / side - 0.5
    return np.cos(angle) * x + np.sin(angle) * y


_PATTERNS = (_clouds, _stripes, _weave, _slope)
