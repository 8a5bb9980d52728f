"""The data of `dvc plots`: one CSV per task, and the confusion matrices of the fine-tuned classifiers.

`dvc.yaml` says what is plotted, the templates in `.dvc/plots` how. A file has the rows of all runs, so a run that a
user adds gets its line or matrix without a change there.
"""

from collections.abc import Iterable
from typing import Any

import pandas as pd

from stages.core.atomic import write_text
from stages.core.figures import short_text
from stages.report.confusion_matrix import NAME_LENGTH
from stages.report.results import Result
from stages.report.section import PLOTS


def write_plot(name: str, rows: Iterable[dict[str, Any]]) -> None:
    """Write the rows to `reports/plots/NAME.csv`; a missing or empty value is an empty cell."""
    write_text(PLOTS / f"{name}.csv", pd.DataFrame(rows).convert_dtypes().to_csv(index=False))


def curve_rows(results: list[Result], columns: dict[str, str]) -> list[dict[str, Any]]:
    """A row per run, seed and epoch; `columns` maps each column's title to its key in the history.

    A run without epochs has a single row, with its final metrics: a horizontal line.
    """
    rows = []
    for result in results:
        for run in result.runs:
            for epoch in run.history or [{"epoch": None, **run.metrics}]:
                values = {title: epoch.get(key) for title, key in columns.items()}
                rows.append({"run": run.name, "seed": run.seed, "epoch": epoch["epoch"], **values})
    return rows


def confusion_rows(results: list[Result], labels: tuple[str, ...]) -> list[dict[str, Any]]:
    """Image counts by true and predicted label, of the first seed of every result.

    Pairs without images are left out, except on the diagonal: every label is on both axes.
    """
    names = [plot_text(label, NAME_LENGTH) for label in labels]
    rows = []
    for result in results:
        for true, counts in zip(names, result.run.details["confusion"], strict=True):
            for predicted, count in zip(names, counts, strict=True):
                if count or predicted == true:
                    rows.append({"run": result.run.key, "true": true, "predicted": predicted, "images": count})
    return rows


def plot_text(text: str, length: int) -> str:
    """`text` as `short_text` gives it, without `<`: DVC writes the rows into a script of its page as they are."""
    return short_text(text, length).replace("<", "\u2039")
