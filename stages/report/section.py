"""One task's part of the page, and the templates that it is written with."""

import re
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import quote

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from stages.data.manifest import Manifest
from stages.params.experiment import Experiment
from stages.params.model_source import display_name
from stages.report.markdown import Markdown, code, escape, join, prose
from stages.report.results import Result
from stages.report.tables import Table

ROOT = Path("reports")
FIGURES = ROOT / "figures"
TABLES = ROOT / "tables"
PLOTS = ROOT / "plots"
TEMPLATES = Path(__file__).with_name("templates")


@dataclass(frozen=True)
class Inputs:
    """What the sections are made from: results and reasons of skipped stages by task, data, and params.

    `skipped_runs` has the reasons of single runs that were skipped, by name.
    """

    results: dict[str, list[Result]]
    skipped: dict[str, str]
    manifest: Manifest
    labeled: Manifest
    experiment: Experiment
    skipped_runs: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Section:
    """One task's markdown and files.

    `assigned` are the original's tables with our numbers, which stand first on the page, and `tables` those in the
    text, by file name; `numbers` are records of `reports/results.csv`; `metrics` are the headline metrics by run, for
    `dvc metrics`; `figures` are by MLflow run ID.
    """

    text: Markdown
    assigned: dict[str, Table] = field(default_factory=dict)
    tables: dict[str, Table] = field(default_factory=dict)
    numbers: list[dict[str, Any]] = field(default_factory=list)
    metrics: dict[str, dict[str, Any]] = field(default_factory=dict)
    figures: dict[str | None, list[Path]] = field(default_factory=dict)


def link(path: str | Path) -> Markdown:
    """The URL of a figure relative to the page's folder."""
    return Markdown(quote(Path(path).relative_to(ROOT).as_posix()))


def render(template: str, **context: Any) -> Markdown:
    """The markdown of `templates/TEMPLATE`; more than one empty line in a row becomes one.

    Text that a template prints with `{{ }}` is escaped, unless it is `Markdown`, as the results of `render`, of tables
    and of the filters `code`, `prose`, `link` and `join` are.
    """
    text = _environment().get_template(template).render(context)
    return Markdown(re.sub(r"\n{3,}", "\n\n", text).strip() + "\n")


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=lambda value: escape(value) if isinstance(value, str) else value,
    )
    environment.filters |= {"code": code, "display_name": display_name, "join": join, "link": link, "prose": prose}
    return environment
