"""Grids of validation images: with captions, with retrieved images, with wrong labels."""

from pathlib import Path
from typing import Any

import numpy as np

from stages.core.figures import figure, label_text, wrap_text
from stages.data.images import read_image
from stages.data.manifest import Row, evenly_spaced

CAPTIONED = 6  # images with their captions
QUERIES = 6  # captions with the images retrieved for them
MISTAKES = 12  # images with a wrong predicted label
TITLE_LENGTH = 90  # characters of a column's title, which has up to three lines
NAME_LENGTH = 30  # characters of a label above an image


def plot_captions(path: Path, rows: tuple[Row, ...], columns: dict[str, dict[str, tuple[str, str]]]) -> None:
    """One row per image: the image, the reference, and one caption per column.

    `columns` maps a title to (caption, reference) by image ID.
    """
    images = evenly_spaced(rows, CAPTIONED)
    references = {image_id: reference for image_id, (_, reference) in next(iter(columns.values())).items()}
    widths = [1, *[1.75] * (1 + len(columns))]
    size = (1.3 * sum(widths), 1.35 * len(images) + 0.4)
    with figure(path, len(images), len(widths), figsize=size, squeeze=False, width_ratios=widths) as (_, axes):
        for row, (image_axis, *text_axes) in zip(images, axes, strict=True):
            _show_image(image_axis, row)
            captions = [captions[row.image_id][0] for captions in columns.values()]
            for axis, text in zip(text_axes, [references[row.image_id], *captions], strict=True):
                _show_text(axis, wrap_text(text, 28, lines=6))
        for axis, title in zip(axes[0][1:], ["Reference", *columns], strict=True):
            # Break after the decoding's name and before the prompt: "Top-K sampling / K = 5, T = 0.1 / "a picture of""
            title = label_text(title, TITLE_LENGTH).replace(", ", "\n", 1).replace(', "', '\n"')
            axis.set_title(title, fontsize=8.5, fontweight="bold", loc="left")


def plot_retrieved(path: Path, label: str, rows: tuple[Row, ...], predictions: list[dict[str, Any]]) -> None:
    """One row per caption: its words and its image's rank, then the nearest images, the right one framed."""
    rows_by_id = {row.image_id: row for row in rows}
    predictions_by_id = {prediction["image_id"]: prediction for prediction in predictions}
    queries = [predictions_by_id[row.image_id] for row in evenly_spaced(rows, QUERIES)]
    widths = [2.2, *[1] * len(queries[0]["nearest"])]
    size = (1.2 * sum(widths), 1.32 * len(queries) + 0.5)
    with figure(path, len(queries), len(widths), figsize=size, squeeze=False, width_ratios=widths) as (fig, axes):
        for query, (text_axis, *image_axes) in zip(queries, axes, strict=True):
            words = wrap_text(query["caption"], 28, lines=5)
            _show_text(text_axis, f"{words}\n(right image: rank {query['text_to_image_rank']})")
            for axis, image_id in zip(image_axes, query["nearest"], strict=True):
                _show_image(axis, rows_by_id[image_id])
                if image_id == query["image_id"]:
                    axis.spines[:].set(visible=True, color="tab:green", linewidth=4)
        for rank, axis in enumerate(axes[0][1:], 1):
            axis.set_title(str(rank), fontsize=9)
        fig.suptitle(f"Nearest images by {label_text(label)}; the right one framed in green", fontsize=10)


def plot_mistakes(path: Path, name: str, rows: tuple[Row, ...], predictions: list[dict[str, Any]]) -> int:
    """Some of the images that setting `name` misclassifies; returns how many there are, and plots nothing if none."""
    predictions_by_id = {prediction["image_id"]: prediction for prediction in predictions}
    wrong = []
    for row in rows:
        prediction = predictions_by_id[row.image_id]
        if prediction["predicted"] != prediction["label"]:
            wrong.append(row)
    if not wrong:
        return 0
    images = evenly_spaced(tuple(wrong), MISTAKES)
    columns = min(6, len(images))
    lines = -(-len(images) // columns)
    with figure(path, lines, columns, figsize=(1.5 * columns, 1.85 * lines + 0.25), squeeze=False) as (fig, axes):
        for axis in axes.flat:
            axis.axis("off")
        for axis, row in zip(axes.flat, images, strict=False):  # the last line may have empty cells
            prediction = predictions_by_id[row.image_id]
            confidence = 100 * max(prediction["probabilities"])
            label, predicted = (label_text(prediction[key], NAME_LENGTH) for key in ("label", "predicted"))
            title = f"{label}\nas {predicted}, {confidence:.0f} %"
            axis.imshow(np.asarray(read_image(Path(row.image))), interpolation="nearest")
            axis.set_title(title, fontsize=8.5)
        fig.suptitle(f"{label_text(name)}: {len(wrong)} of {len(predictions)} images misclassified", fontsize=10)
    return len(wrong)


def _show_image(axis: Any, row: Row) -> None:
    axis.imshow(np.asarray(read_image(Path(row.image))), interpolation="nearest")
    axis.set(xticks=[], yticks=[])
    axis.spines[:].set_visible(False)


def _show_text(axis: Any, text: str) -> None:
    axis.axis("off")
    axis.text(0, 0.5, text, fontsize=8.5, va="center", transform=axis.transAxes)
