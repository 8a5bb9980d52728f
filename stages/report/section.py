"""One task's part of the page."""

from dataclasses import dataclass, field
from pathlib import Path

from stages.report.tables import Table

ROOT = Path("reports")
FIGURES, TABLES, CURVES = ROOT / "figures", ROOT / "tables", ROOT / "curves"


@dataclass(frozen=True)
class Section:
    """Markdown `lines`; `tables` by file name; `metrics` by run, for `dvc metrics`; `figures` by run's identity."""

    lines: list[str]
    tables: dict[str, Table] = field(default_factory=dict)
    metrics: dict[str, dict] = field(default_factory=dict)
    figures: dict[str, list[Path]] = field(default_factory=dict)


def image(words: str, path: Path) -> str:
    """A figure on the page, linked from where the page lies."""
    return f"![{words}]({path.relative_to(ROOT).as_posix()})"
