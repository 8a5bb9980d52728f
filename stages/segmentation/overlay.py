"""A mask over its image."""

from pathlib import Path

import numpy as np
from matplotlib.patches import Patch
from PIL import Image
from scipy import ndimage

from stages.core.figures import figure, label_text
from stages.data.voc import BACKGROUND
from stages.segmentation.class_colors import class_colors

OPACITY = 0.6  # of a region
INCHES = 6.0  # longer side of an image in its figure
LEGEND_COLUMNS = 3
NAME_LENGTH = 40  # characters of a class in the legend


def overlay(pixels: np.ndarray, mask: np.ndarray, classes: tuple[str, ...]) -> np.ndarray:
    """`pixels` `(H, W, 3)` in 0..1, faded to gray, under the classes' colors with an opaque outline of each region.

    Void and the class `background` are not painted.
    """
    colors = class_colors(classes)
    gray = pixels.mean(axis=2, keepdims=True)
    painted = 0.25 * pixels + 0.75 * gray  # a colorful image would mix with the colors of the classes
    for index, name in enumerate(classes):
        inside = mask == index
        if name == BACKGROUND or not inside.any():
            continue
        outline = inside & ~ndimage.binary_erosion(inside, border_value=1)
        alpha = np.where(outline, 1.0, OPACITY)[inside, None]
        painted[inside] = painted[inside] * (1 - alpha) + np.array(colors[name]) * alpha
    return painted


def plot_overlay(
    path: Path, image: Image.Image, mask: np.ndarray, classes: tuple[str, ...], areas: dict[str, float]
) -> None:
    """An image under its mask; the legend names the classes that occur, with their `areas` in percent."""
    width, height = (INCHES * side / max(image.size) for side in image.size)
    names = [name for name in areas if name != BACKGROUND]
    colors = class_colors(classes)
    labels = [f"{label_text(name, NAME_LENGTH)} {areas[name]:.1f} %" for name in names]
    size = (max(width, 2.5), height + 0.2 + 0.24 * -(-len(labels) // LEGEND_COLUMNS))
    with figure(path, figsize=size) as (fig, axis):
        axis.imshow(overlay(np.asarray(image, np.float32) / 255, mask, classes), interpolation="nearest")
        axis.set_axis_off()
        patches = [Patch(color=colors[name], label=label) for name, label in zip(names, labels, strict=True)]
        if patches:
            fig.legend(handles=patches, loc="outside lower center", ncols=LEGEND_COLUMNS, fontsize=8, frameon=False)
