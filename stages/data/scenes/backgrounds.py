"""Backgrounds of scenes: crops of two photographs, and textures (clouds, stripes, weave, slope).

Pixels are in 0..1. The order of random draws determines them.
"""

from functools import cache

import numpy as np
from PIL import Image
from scipy import ndimage


@cache
def photographs() -> tuple[Image.Image, ...]:
    """Return scikit-learn's two bundled photographs: a temple and a flower (CC BY)."""
    from sklearn.datasets import load_sample_images  # half a second, which stages that draw no scenes need not wait for

    return tuple(Image.fromarray(image) for image in load_sample_images().images)


def photograph(rng: np.random.Generator, side: int) -> np.ndarray:
    """Return a random square crop of a photograph, `(side, side, 3)` float32, less vivid so that objects stand out."""
    photo = photographs()[rng.integers(2)]
    crop_side = int(rng.integers(side, min(photo.size) + 1))
    left = int(rng.integers(0, photo.width - crop_side + 1))
    top = int(rng.integers(0, photo.height - crop_side + 1))
    box = (left, top, left + crop_side, top + crop_side)
    crop = photo.resize((side, side), Image.Resampling.BOX, box=box)
    pixels = np.asarray(crop, np.float32) / 255
    gray = pixels.mean(axis=2, keepdims=True)
    pixels = gray + (pixels - gray) * rng.uniform(0.35, 0.8)  # less saturated
    return np.clip(0.5 + (pixels - 0.5) * rng.uniform(0.45, 0.8) + rng.uniform(-0.12, 0.12), 0, 1)  # less contrast


def texture(rng: np.random.Generator, side: int) -> np.ndarray:
    """Return two related muted tones blended by a pattern, `(side, side, 3)` float32."""
    first = rng.uniform(0.25, 0.75) + rng.uniform(-0.12, 0.12, 3)
    second = first + rng.choice([-1, 1]) * rng.uniform(0.06, 0.16) + rng.uniform(-0.04, 0.04, 3)
    pattern = _PATTERNS[rng.integers(len(_PATTERNS))]
    weight = pattern(rng, side)[..., None]  # (side, side, 1): of the second tone
    grain = rng.normal(0, 0.012, (side, side, 1))
    return np.clip(first + (second - first) * weight + grain, 0, 1).astype(np.float32)


def _clouds(rng: np.random.Generator, side: int) -> np.ndarray:
    """Three octaves of value noise, the coarsest strongest."""
    octaves = []
    for cells in (3, 7, 15):
        noise = rng.random((cells + 1, cells + 1))
        octaves.append(ndimage.zoom(noise, side / (cells + 1), order=1, grid_mode=True, mode="nearest"))
    return sum(weight * octave for weight, octave in zip((0.55, 0.3, 0.15), octaves, strict=True))


def _stripes(rng: np.random.Generator, side: int) -> np.ndarray:
    return 0.5 + 0.5 * np.sin(_distance_along(rng, side) * 2 * np.pi * rng.uniform(3, 8))


def _weave(rng: np.random.Generator, side: int) -> np.ndarray:
    frequency = 2 * np.pi * rng.uniform(3, 7)
    y, x = np.mgrid[:side, :side] / side
    return 0.5 + 0.5 * np.sin(x * frequency) * np.sin(y * frequency)


def _slope(rng: np.random.Generator, side: int) -> np.ndarray:
    return np.clip(_distance_along(rng, side) * 0.7 + 0.5, 0, 1)


def _distance_along(rng: np.random.Generator, side: int) -> np.ndarray:
    """Signed distance from the center along a random direction, in sides, `(side, side)`."""
    angle = rng.uniform(0, np.pi)
    y, x = np.mgrid[:side, :side] / side - 0.5
    return np.cos(angle) * x + np.sin(angle) * y


_PATTERNS = (_clouds, _stripes, _weave, _slope)  # drawn by index: keep the order
