"""One task's part of the page."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from stages.report.results import Result
from stages.report.tables import Table

ROOT = Path("reports")
FIGURES = ROOT / "figures"
TABLES = ROOT / "tables"
CURVES = ROOT / "curves"


@dataclass(frozen=True)
class Section:
    """Markdown `lines`; `tables` by file name; `metrics` by run, for `dvc metrics`; `figures` by the run's identity."""

    lines: list[str]
    tables: dict[str, Table] = field(default_factory=dict)
    metrics: dict[str, dict[str, Any]] = field(default_factory=dict)
    figures: dict[str, list[Path]] = field(default_factory=dict)


def skipped_section(title: str, subject: str, reason: str | None) -> Section:
    """The part of a task whose stage had nothing to do; `subject` is what is missing, with its verb."""
    return Section([f"## {title}", "", f"{subject} left out: {reason}.", ""])


def image(alt: str, path: Path) -> str:
    """A figure in markdown, linked from the page's folder."""
    return f"![{alt}]({path.relative_to(ROOT).as_posix()})"


def select_metrics(results: Iterable[Result], *keys: str) -> dict[str, dict[str, Any]]:
    """The metrics `keys` of every run that has them, by run name."""
    return {result.run.name: {key: result.metrics[key] for key in keys if key in result.metrics} for result in results}
