"""Validation images with their true and predicted masks."""

from pathlib import Path

import numpy as np
from matplotlib.patches import Patch

from stages.core.figures import figure, label_text
from stages.data.images import read_image
from stages.data.manifest import Row
from stages.data.voc import BACKGROUND, VOID
from stages.segmentation.class_colors import class_colors
from stages.segmentation.overlay import NAME_LENGTH, overlay

IMAGE_INCHES = 1.55  # width of one image in the figure
TITLE_LENGTH = 20  # characters of a row's title, which fit beside a square image


def plot_masks(
    path: Path,
    label: str,
    rows: tuple[Row, ...],
    truths: dict[str, np.ndarray],
    predictions: dict[str, dict[str, np.ndarray]],
    classes: tuple[str, ...],
) -> None:
    """One column per image: the image, its true mask, its predicted masks; the legend names the classes that occur.

    `truths` holds masks `(H, W)` by image ID, `predictions` those of each model by its name.
    """
    titles = ("image", "truth", *predictions)
    lines = (truths, *predictions.values())
    masks = [masks_by_id[row.image_id] for masks_by_id in lines for row in rows]
    indices = sorted(set().union(*(np.unique(mask).tolist() for mask in masks)) - {VOID})
    names = [classes[index] for index in indices if classes[index] != BACKGROUND]
    aspect = max(row.height / row.width for row in rows)
    width = IMAGE_INCHES * len(rows) + 0.5
    labels = [label_text(name, NAME_LENGTH) for name in names]
    # About 14 characters per inch, 6 of which an entry's color and margins take.
    fitting = int(14 * width / (6 + max(map(len, labels), default=0)))
    columns = max(1, min(7, fitting, len(labels)))
    legend_lines = -(-len(labels) // columns)
    size = (width, len(titles) * IMAGE_INCHES * aspect + 0.35 + 0.24 * legend_lines)
    with figure(path, len(titles), len(rows), figsize=size, squeeze=False) as (fig, axes):
        for row, axes_of_row in zip(rows, axes.T, strict=True):
            pixels = np.asarray(read_image(Path(row.image)), np.float32) / 255
            overlays = [overlay(pixels, masks_by_id[row.image_id], classes) for masks_by_id in lines]
            for axis, picture in zip(axes_of_row, (pixels, *overlays), strict=True):
                axis.imshow(picture, interpolation="nearest")
                axis.set(xticks=[], yticks=[])
                axis.spines[:].set_visible(False)
        for axis, title in zip(axes[:, 0], titles, strict=True):
            axis.set_ylabel(label_text(title, TITLE_LENGTH), fontsize=9)
        fig.suptitle(label_text(label), fontsize=11)
        colors = class_colors(classes)
        patches = [Patch(color=colors[name], label=text) for name, text in zip(names, labels, strict=True)]
        if patches:
            fig.legend(handles=patches, loc="outside lower center", ncols=columns, fontsize=8, frameon=False)
