"""The original's tables with our numbers, and below them, everything else about their rows next to its numbers."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from stages.params.experiment import Experiment
from stages.report.markdown import Markdown
from stages.report.numbers import format_number, format_range, star_highest
from stages.report.original import load_original
from stages.report.original_settings import ORIGINAL_PROFILE, changed_settings, deviations, original_number
from stages.report.results import Result
from stages.report.section import Section, render
from stages.report.significance import Metric, star_margin
from stages.report.tables import Table

# Further columns of text; all others hold numbers.
TEXT_COLUMNS = ("Input",)


@dataclass(frozen=True)
class Row:
    """A row of one of the original's tables, or one that we add to it.

    `cells` are the table's columns but the last, as printed. `original` is the number, or the words, that the original
    prints in the last column; None if it has no such row, or made it with other settings. `interval` is of our number.
    `more` holds further columns for the comparison, by title.
    """

    result: Result
    cells: tuple[str, ...]
    original: float | str | None
    interval: tuple[float, float]
    more: dict[str, str] = field(default_factory=dict)

    @property
    def number(self) -> float | None:
        """`original` if it is a number: the original states some accuracies in words, such as "over 94"."""
        return float(self.original) if isinstance(self.original, int | float) else None


def original_value(result: Result, experiment: Experiment) -> float | str | None:
    """What the original prints for a row; None if it has no such row, or made it with other settings."""
    if changed_settings(result, experiment):
        return None
    return original_number(result.run.task, result.name)


def sort_as_original(rows: Iterable[Row], table: str) -> list[Row]:
    """Rows in the order of the original's; rows that it does not have come last, in their own order."""
    order = list(load_original()[table]["rows"])
    return sorted(rows, key=lambda row: order.index(row.result.name) if row.result.name in order else len(order))


@dataclass(frozen=True)
class OriginalTable:
    """One of the original's tables with our rows. `name` is its key in `original.json`."""

    name: str
    rows: list[Row]
    metric: Metric
    profile: str
    randomness: str  # what seeds vary, in words
    left: tuple[str, ...]  # columns that are aligned to the left
    starred: bool = False

    @property
    def title(self) -> str:
        """`Table 1`, for example."""
        return load_original()[self.name]["title"]

    @property
    def assigned_rows(self) -> list[Row]:
        """The rows that the original has, in its order."""
        names = load_original()[self.name]["rows"]
        return sort_as_original([row for row in self.rows if row.result.name in names], self.name)

    def assigned(self) -> Table:
        """The table exactly as in the original: its caption, columns and rows, two decimals; the mean over seeds."""
        original = load_original()[self.name]
        rows = self.assigned_rows
        means = [row.result.metrics[self.metric.key] for row in rows]
        numbers = star_highest(means) if self.starred else [format_number(mean) for mean in means]
        cells = [(*row.cells, number) for row, number in zip(rows, numbers, strict=True)]
        frame = pd.DataFrame(cells, columns=original["columns"], dtype=object)
        return Table(original["caption"], frame, self.left, self.title)

    def comparison(self) -> Table:
        """All rows, the original's first, with intervals, the original's numbers and further columns.

        Our number minus the original's is printed only where data, models and protocol are the original's.
        """
        *label_columns, number_column = load_original()[self.name]["columns"]
        rows = []
        for row in sort_as_original(self.rows, self.name):
            mean = row.result.metrics[self.metric.key]
            cells = dict(zip(label_columns, row.cells, strict=True))
            cells[number_column] = _mean_and_deviation(row.result, self.metric)
            cells["Seeds"] = "-" if row.result.run.seed is None else str(len(row.result.runs))
            cells["95 % interval"] = format_range(*row.interval)
            cells["Original"] = _format_original(row.original)
            if self.profile == ORIGINAL_PROFILE:
                number = None if deviations(row.result.run) else row.number
                cells["Difference"] = "-" if number is None else f"{mean - number:+.2f}"
            rows.append(cells | row.more)
        frame = pd.DataFrame(rows, dtype=object)
        return Table(f"{self.title}, compared with the original", frame, (*self.left, *TEXT_COLUMNS))

    def explanation(self) -> Markdown:
        """What the columns of the comparison mean."""
        return render(
            "comparison.md",
            source=load_original()[self.name]["source"],
            is_original=self.profile == ORIGINAL_PROFILE,
            deviations=list(dict.fromkeys(text for row in self.rows for text in deviations(row.result.run))),
            seeds=max(len(row.result.runs) for row in self.rows),
            randomness=self.randomness,
        )

    def star_sentence(self) -> Markdown | None:
        """Whether the star is significant; None for a table without a star, or with fewer than two rows."""
        results = [row.result for row in self.assigned_rows]
        margin = star_margin(results, self.metric) if self.starred else None
        if margin is None:
            return None
        return render(
            "star.md",
            title=self.title,
            margin=margin,
            seeds=max(len(row.result.runs) for row in self.rows),
            randomness=self.randomness,
        )

    def numbers(self) -> list[dict[str, Any]]:
        """All metrics of all rows for `reports/results.csv`."""
        records = []
        for row in sort_as_original(self.rows, self.name):
            records += result_numbers(self.name, row.result, self.metric.key, row.interval, row.number)
        return records

    def headline(self) -> dict[str, dict[str, float]]:
        """The metric of every row, by run, for `dvc metrics`."""
        key = self.metric.key
        return {row.result.name: {key: row.result.metrics[key]} for row in self.rows}


def build_section(text: Markdown, tables: list[OriginalTable], figures: dict[str | None, list[Path]]) -> Section:
    """A task's section of the original's tables."""
    return Section(
        text,
        assigned={table.name: table.assigned() for table in tables},
        numbers=[record for table in tables for record in table.numbers()],
        metrics={name: values for table in tables for name, values in table.headline().items()},
        figures=figures,
    )


def result_numbers(
    table: str,
    result: Result,
    headline: str | None = None,
    interval: tuple[float, float] | None = None,
    original: float | None = None,
) -> list[dict[str, Any]]:
    """Every metric of a result as records: the mean over seeds, without a seed, then each run's, with its seed.

    `interval` and `original` are of the metric `headline`. Intervals of other metrics are the run's own: several seeds
    have none in common. A result without seeds has one record per metric.
    """
    frame = result.frame
    metrics = result.metrics
    params = result.run.params
    records = []
    for key in frame:
        bounds = (f"{key}_low", f"{key}_high")
        if key.endswith(("_low", "_high")):
            continue
        record = {"table": table, "run": result.name, "metric": key, "profile": params["profile"]}
        low, high = (metrics.get(bound) for bound in bounds) if len(result.runs) == 1 else (None, None)
        if key == headline and interval:
            low, high = interval
        pooled = {"value": metrics[key], "low": low, "high": high, "seed": None}
        records.append(record | pooled | {"original": original if key == headline else None})
        for run, (_, row) in zip(result.runs, frame.iterrows(), strict=True):
            if run.seed is not None:
                single = {"value": row[key], "low": row.get(bounds[0]), "high": row.get(bounds[1]), "seed": run.seed}
                records.append(record | single | {"original": None})
    return records


def write_numbers(records: list[dict[str, Any]]) -> str:
    """The records as CSV: numbers only in the columns of numbers, empty where undefined."""
    columns = ["table", "run", "metric", "value", "low", "high", "original", "profile", "seed"]
    return pd.DataFrame(records, columns=columns).astype({"seed": "Int64"}).to_csv(index=False)


def _mean_and_deviation(result: Result, metric: Metric) -> str:
    """`53.20`; with several seeds `53.20 ± 0.45`, the standard deviation over the seeds."""
    mean = format_number(result.metrics[metric.key])
    spread = metric.spread(result)
    return mean if spread is None else f"{mean} ± {spread:.2f}"


def _format_original(value: float | str | None) -> str:
    if value is None:
        return "-"
    return f"{value:.2f}" if isinstance(value, float) else str(value)
