"""Masks laid over validation images."""

from pathlib import Path

import numpy as np
from matplotlib.patches import Patch
from scipy import ndimage

from stages.core.figures import figure
from stages.data.images import read_image, read_mask
from stages.data.manifest import Row
from stages.data.voc import BACKGROUND, VOID
from stages.report.colors import class_colors


def overlay(pixels: np.ndarray, mask: np.ndarray, classes: tuple[str, ...], opacity: float = 0.6) -> np.ndarray:
    """`pixels` `(H, W, 3)` in 0..1, faded to gray, with each class's color laid over it and a line around regions.

    Void and the class `background` are not painted.
    """
    colors = class_colors(classes)
    gray = pixels.mean(axis=2, keepdims=True)
    painted = 0.25 * pixels + 0.75 * gray  # a colored image would mix with the colors of the classes
    for index, name in enumerate(classes):
        inside = mask == index
        if name == BACKGROUND or not inside.any():
            continue
        share = np.where(inside & ~ndimage.binary_erosion(inside, border_value=1), 1.0, opacity)[inside, None]
        painted[inside] = painted[inside] * (1 - share) + np.array(colors[name]) * share
    return painted


def draw_masks(
    path: Path, label: str, rows: tuple[Row, ...], predictions: dict[str, np.ndarray], classes: tuple[str, ...]
) -> None:
    """A column an image: the image, its true mask, its predicted mask; a legend with the classes that occur."""
    truths = [read_mask(Path(row.mask)) for row in rows]
    masks = [*truths, *(predictions[row.image_id] for row in rows)]
    seen = sorted(set().union(*(np.unique(mask).tolist() for mask in masks)))
    names = [classes[index] for index in seen if index != VOID and classes[index] != BACKGROUND]
    aspect = max(row.height / row.width for row in rows)
    size = (1.55 * len(rows) + 0.5, 3 * 1.55 * aspect + 0.35 + 0.24 * -(-len(names) // 7))
    with figure(path, 3, len(rows), figsize=size, squeeze=False) as (drawn, axes):
        for column, (row, truth) in enumerate(zip(rows, truths, strict=True)):
            pixels = np.asarray(read_image(Path(row.image)), np.float32) / 255
            pictures = (pixels, overlay(pixels, truth, classes), overlay(pixels, predictions[row.image_id], classes))
            for axis, picture in zip(axes[:, column], pictures, strict=True):
                axis.imshow(picture, interpolation="nearest")
                axis.set(xticks=[], yticks=[])
                axis.spines[:].set_visible(False)
        for axis, title in zip(axes[:, 0], ("image", "truth", "prediction"), strict=True):
            axis.set_ylabel(title, fontsize=9)
        drawn.suptitle(label, fontsize=11)
        colors = class_colors(classes)
        patches = [Patch(color=colors[name], label=name) for name in names]
        if patches:
            drawn.legend(
                handles=patches, loc="outside lower center", ncols=min(7, len(patches)), fontsize=8, frameon=False
            )
