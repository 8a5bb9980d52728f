"""Validation images with their true and predicted masks."""

from pathlib import Path

import numpy as np
from matplotlib.patches import Patch
from PIL import Image
from scipy import ndimage

from stages.core.figures import figure, label_text
from stages.data.images import read_image
from stages.data.manifest import Row
from stages.data.voc import BACKGROUND, VOID
from stages.report.colors import class_colors

OPACITY = 0.6  # of a region
IMAGE_INCHES = 1.55  # width of one image in the figure
LEGEND_COLUMNS = 3  # of a single image's legend
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
    inches = 6.0
    width, height = (inches * side / max(image.size) for side in image.size)
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


def plot_masks(
    path: Path,
    label: str,
    rows: tuple[Row, ...],
    truths: dict[str, np.ndarray],
    predictions: dict[str, np.ndarray],
    classes: tuple[str, ...],
) -> None:
    """One column per image: the image, its true mask, its predicted mask; the legend names the classes that occur.

    `truths` and `predictions` hold masks `(H, W)` by image ID.
    """
    masks = [masks_by_id[row.image_id] for masks_by_id in (truths, predictions) for row in rows]
    indices = sorted(set().union(*(np.unique(mask).tolist() for mask in masks)) - {VOID})
    names = [classes[index] for index in indices if classes[index] != BACKGROUND]
    aspect = max(row.height / row.width for row in rows)
    width = IMAGE_INCHES * len(rows) + 0.5
    labels = [label_text(name, NAME_LENGTH) for name in names]
    # About 14 characters per inch, 6 of which an entry's color and margins take.
    fitting = int(14 * width / (6 + max(map(len, labels), default=0)))
    columns = max(1, min(7, fitting, len(labels)))
    legend_lines = -(-len(labels) // columns)
    size = (width, 3 * IMAGE_INCHES * aspect + 0.35 + 0.24 * legend_lines)
    with figure(path, 3, len(rows), figsize=size, squeeze=False) as (fig, axes):
        for row, axes_of_row in zip(rows, axes.T, strict=True):
            pixels = np.asarray(read_image(Path(row.image)), np.float32) / 255
            truth = overlay(pixels, truths[row.image_id], classes)
            prediction = overlay(pixels, predictions[row.image_id], classes)
            for axis, picture in zip(axes_of_row, (pixels, truth, prediction), strict=True):
                axis.imshow(picture, interpolation="nearest")
                axis.set(xticks=[], yticks=[])
                axis.spines[:].set_visible(False)
        for axis, title in zip(axes[:, 0], ("image", "truth", "prediction"), strict=True):
            axis.set_ylabel(title, fontsize=9)
        fig.suptitle(label_text(label), fontsize=11)
        colors = class_colors(classes)
        patches = [Patch(color=colors[name], label=text) for name, text in zip(names, labels, strict=True)]
        if patches:
            fig.legend(handles=patches, loc="outside lower center", ncols=columns, fontsize=8, frameon=False)
