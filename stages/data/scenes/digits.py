"""Real handwritten digits, split by writer.

`sklearn.datasets.load_digits` (UCI "Optical Recognition of Handwritten Digits") lists the scans of a writer one after
another, so contiguous blocks of rows share almost no writers.
"""

from functools import cache

import numpy as np
from scipy import ndimage

DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")

# Rows of `load_digits` by data set and split. Pretraining has a validation split of its own.
WRITERS = {
    "pretrain": slice(0, 900),
    "pretrain_val": slice(900, 1000),
    "train": slice(1000, 1244),
    "objects_train": slice(1244, 1400),
    "val": slice(1400, 1659),
    "objects_val": slice(1659, 1797),
}

SCAN_MAX = 16.0  # largest gray value of a scan
PADDING = 2  # scan pixels on each side: room for smoothed strokes
ZOOM = 6
GLYPH_SIDE = (8 + 2 * PADDING) * ZOOM  # 72 pixels
GLYPH_UNIT = 4.0 * ZOOM  # half the scan's height, in glyph pixels: the unit of an object's own coordinates


@cache
def glyphs(writers: str) -> tuple[np.ndarray, ...]:
    """Return the ink of every digit by one block of writers.

    Ten arrays in the order of `DIGITS`, each `(scans, 72, 72)` float32 in 0..1 with the stroke's edge at 0.5. Raises
    `KeyError` for an unknown block.
    """
    from sklearn.datasets import load_digits  # late, as in backgrounds.py

    rows = WRITERS[writers]
    scans = load_digits()
    labels = scans.target[rows]
    ink = np.stack([_enlarge(image) for image in scans.images[rows]])
    return tuple(ink[labels == digit] for digit in range(len(DIGITS)))


def _enlarge(scan: np.ndarray) -> np.ndarray:
    """Return a smooth `(72, 72)` field from an `(8, 8)` scan."""
    padded = np.pad(scan / SCAN_MAX, PADDING)
    enlarged = ndimage.zoom(padded, ZOOM, order=3, mode="grid-constant", grid_mode=True)
    smooth = ndimage.gaussian_filter(enlarged, 1.2)
    # Cubic interpolation overshoots: scale the maximum to 1, and clip what is below 0.
    return (smooth / max(smooth.max(), 1e-6)).clip(0, 1).astype(np.float32)
