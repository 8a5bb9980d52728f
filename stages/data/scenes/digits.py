"""Real handwritten digits, split by the people who wrote them.

`sklearn.datasets.load_digits` (UCI "Optical Recognition of Handwritten Digits") lists its writers one
after another, so contiguous blocks of it share next to no writer.
"""

from functools import cache

import numpy as np
from scipy import ndimage
from sklearn.datasets import load_digits

DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")

# Rows of `load_digits`, by who may see their writers. Pretraining is validated on its own last writers.
WRITERS = {
    "pretrain": slice(0, 900),
    "pretrain_val": slice(900, 1000),
    "train": slice(1000, 1244),
    "objects_train": slice(1244, 1400),
    "val": slice(1400, 1659),
    "objects_val": slice(1659, 1797),
}

GLYPH_SIDE = 72  # pixels: 8x8 scans, padded to 12x12, enlarged six times


@cache
def glyphs(writers: str) -> tuple[np.ndarray, ...]:
    """Ink of every digit written by one block of writers.

    Returns ten arrays, one a digit in the order of `DIGITS`, each `(scans, 72, 72)` float32 in 0..1 with the
    stroke's edge at 0.5. Raises `KeyError` for an unknown block.
    """
    scans = load_digits()
    images, labels = scans.images[WRITERS[writers]], scans.target[WRITERS[writers]]
    ink = np.stack([_enlarge(image) for image in images])
    return tuple(ink[labels == digit] for digit in range(len(DIGITS)))


def _enlarge(scan: np.ndarray) -> np.ndarray:
    """A smooth `(72, 72)` field from an `(8, 8)` scan of 0..16 gray values."""
    padded = np.pad(scan / 16.0, 2)
    smooth = ndimage.gaussian_filter(ndimage.zoom(padded, 6, order=3, mode="grid-constant", grid_mode=True), 1.2)
    return (smooth / max(smooth.max(), 1e-6)).clip(0, 1).astype(np.float32)
