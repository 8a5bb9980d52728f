"""PASCAL VOC's conventions for masks: class names, the void label, the color map (Everingham et al., 2010)."""

import numpy as np


def _color_map() -> np.ndarray:
    """`(256, 3)` uint8: bits 0, 1, 2 of the index, then 3, 4, 5 and so on, fill R, G, B from the top bit down.

    The rule of the VOC devkit's `VOCcolormap.m`.
    """
    index = np.arange(256)
    colors = np.zeros((256, 3), np.uint8)
    for bit in range(8):
        for channel in range(3):
            colors[:, channel] |= (((index >> (3 * bit + channel)) & 1) << (7 - bit)).astype(np.uint8)
    return colors


CLASSES = (
    "background",
    "aeroplane",
    "bicycle",
    "bird",
    "boat",
    "bottle",
    "bus",
    "car",
    "cat",
    "chair",
    "cow",
    "diningtable",
    "dog",
    "horse",
    "motorbike",
    "person",
    "pottedplant",
    "sheep",
    "sofa",
    "train",
    "tvmonitor",
)  # of mask values 0 to 20
BACKGROUND = "background"  # the name of what is no object
VOID = 255  # pixels that are never counted
COLOR_MAP = _color_map()
