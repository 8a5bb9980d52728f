"""The confusion matrix of a classifier as a figure."""

from pathlib import Path

import numpy as np

from stages.core.figures import figure, label_text
from stages.report.results import Result

NAME_LENGTH = 30  # characters of a label beside the matrix


def plot_confusion_matrix(path: Path, result: Result, labels: tuple[str, ...]) -> None:
    """Image counts by true (rows) and predicted label (columns) of the first seed; colors are shares of a row."""
    counts = np.array(result.run.details["confusion"])
    shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)  # a label may have no validation image
    names = [label_text(label, NAME_LENGTH) for label in labels]
    side = 2.2 + 0.27 * len(labels)  # inches
    with figure(path, figsize=(side + 0.8, side)) as (fig, axes):
        matrix = axes.imshow(100 * shares, cmap="Blues", vmin=0, vmax=100)
        for row, column in zip(*counts.nonzero(), strict=True):
            color = "white" if shares[row, column] > 0.55 else "black"
            axes.text(column, row, counts[row, column], ha="center", va="center", fontsize=7, color=color)
        axes.set_xticks(range(len(labels)), names, rotation=90, fontsize=8)
        axes.set_yticks(range(len(labels)), names, fontsize=8)
        axes.set(xlabel="predicted", ylabel="true")
        accuracy = 100 * np.trace(counts) / counts.sum()
        axes.set_title(f"{label_text(result.run.key)}: accuracy {accuracy:.1f} %", fontsize=10)
        fig.colorbar(matrix, ax=axes, shrink=0.8, aspect=30, label="of the true label's images (%)")
