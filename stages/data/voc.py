"""PASCAL VOC's conventions for masks: class names, the void label, the color map (Everingham et al., 2010)."""

from pathlib import Path

import numpy as np
from PIL import Image


def _color_map() -> np.ndarray:
    """Return `(256, 3)` uint8: the rule of the VOC devkit's `VOCcolormap.m`.

    Bits 0, 1, 2 of the index are the highest bits of R, G, B; bits 3, 4, 5 the next lower ones; and so on.
    """
    index = np.arange(256)
    colors = np.zeros((256, 3), np.uint8)
    for bit in range(8):
        for channel in range(3):
            index_bit = (index >> (3 * bit + channel)) & 1
            colors[:, channel] |= (index_bit << (7 - bit)).astype(np.uint8)
    return colors


# Names of mask values 0 to 20.
CLASSES = (
    "background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "diningtable",
    "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor",
)  # fmt: skip
BACKGROUND = "background"  # name of the class of pixels outside all objects
VOID = 255  # mask value of pixels that are ignored
COLOR_MAP = _color_map()


def save_mask(mask: np.ndarray, path: Path) -> None:
    """Write class indices `(H, W)` uint8 as a palette PNG in VOC's colors."""
    image = Image.fromarray(mask, mode="P")
    image.putpalette(COLOR_MAP.tobytes())
    image.save(path, format="PNG")
