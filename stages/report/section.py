"""One task's part of the page, and the templates that it is written with."""

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from stages.data.manifest import Manifest
from stages.params.experiment import Experiment
from stages.params.model_source import display_name
from stages.report.results import Result
from stages.report.tables import Table

ROOT = Path("reports")
FIGURES = ROOT / "figures"
TABLES = ROOT / "tables"
CURVES = ROOT / "curves"


@dataclass(frozen=True)
class Inputs:
    """What the sections are made from: results and reasons of skipped stages by task, data, and params."""

    results: dict[str, list[Result]]
    skipped: dict[str, str]
    manifest: Manifest
    labeled: Manifest
    experiment: Experiment


@dataclass(frozen=True)
class Section:
    """Markdown `text`; `tables` by file name; `metrics` by run, for `dvc metrics`; `figures` by MLflow run ID."""

    text: str
    tables: dict[str, Table] = field(default_factory=dict)
    metrics: dict[str, dict[str, Any]] = field(default_factory=dict)
    figures: dict[str | None, list[Path]] = field(default_factory=dict)


def link(path: str | Path) -> str:
    """The path of a figure relative to the page's folder."""
    return Path(path).relative_to(ROOT).as_posix()


def render(template: str, **context: Any) -> str:
    """The markdown of `templates/TEMPLATE`; more than one empty line in a row becomes one."""
    folder = Path(__file__).with_name("templates")
    environment = Environment(
        loader=FileSystemLoader(folder), undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {"display_name": display_name, "link": link}
    text = environment.get_template(template).render(context)
    return re.sub(r"\n{3,}", "\n\n", text).strip() + "\n"


def select_metrics(results: Iterable[Result], *keys: str) -> dict[str, dict[str, Any]]:
    """The metrics `keys` of every run that has them, by run name."""
    return {result.run.name: {key: result.metrics[key] for key in keys if key in result.metrics} for result in results}
