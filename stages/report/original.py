"""The numbers that the assignment's two write-ups print (`original.json`), and tables that compare ours with them."""

import json
from collections.abc import Iterable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from stages.report.numbers import format_interval
from stages.report.results import Result
from stages.report.tables import Table


@cache
def load_original() -> dict[str, Any]:
    """The original's tables: caption, columns, and rows by run name, in the original's order."""
    return json.loads(Path(__file__).with_name("original.json").read_text(encoding="utf-8"))


def original_number(tables: Sequence[str], name: str, settings: list) -> float | None:
    """The number that the original prints in row `name` of one of `tables`; None if our settings are not the row's."""
    for table in tables:
        row = load_original()[table]["rows"].get(name)
        if row and row[:-1] == settings:
            return row[-1]
    return None


def sort_as_original(results: Iterable[Result], table: str) -> list[Result]:
    """Results in the order of the original's rows; results that it does not have come last, in their own order."""
    order = list(load_original()[table]["rows"])
    return sorted(results, key=lambda result: order.index(result.run.name) if result.run.name in order else len(order))


def comparison_table(title: str, name: str, rows: Iterable[tuple[str, ...]], *more_columns: str) -> Table:
    """The original's table `name` with our rows; after its columns come those of `comparison_cells`."""
    original = load_original()[name]
    columns = (*original["columns"], "95 % interval", "Original", "Difference", *more_columns)
    return Table(f"{title}. {original['caption']}", columns, tuple(rows))


def comparison_cells(metrics: dict[str, Any], key: str, original: float | None) -> tuple[str, str, str]:
    """The 95 % interval, the original's number, and ours minus it; `-` if the original has no such number."""
    interval = format_interval(metrics, key)
    if original is None:
        return interval, "-", "-"
    return interval, f"{original:.2f}", f"{metrics[key] - original:+.2f}"
