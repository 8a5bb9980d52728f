"""Reading pictures and masks from disk, whatever their mode."""

from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

MASK_MODES = ("P", "L", "1")


def read_image(path: Path) -> Image.Image:
    """An RGB picture, upright (EXIF orientation applied). Raises `OSError` where it is missing or truncated."""
    with Image.open(path) as image:
        upright = ImageOps.exif_transpose(image)
        if upright.mode.startswith("I;16"):  # Pillow would clip 16-bit grey at 255
            upright = Image.fromarray((np.asarray(upright) >> 8).astype(np.uint8))
        return upright.convert("RGB")


def read_mask(path: Path) -> np.ndarray:
    """Class indices `(H, W)` uint8 of a palette or grey mask. Raises `OSError`, or `ValueError` for another mode."""
    with Image.open(path) as mask:
        if mask.mode not in MASK_MODES:
            raise ValueError(f"a mask of mode {mask.mode}; expected palette (P) or grey (L) class indices")
        return np.asarray(mask).astype(np.uint8)
