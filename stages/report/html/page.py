"""The page: the report's markdown, the IoU of every class, and the browsing part, in one file."""

import base64
import hashlib
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from stages.core.messages import printable_line
from stages.report.html.browse import TASKS, build_browsing
from stages.report.html.class_iou import class_iou
from stages.report.html.document import Block, Heading, IdRegistry, Prose, read_document
from stages.report.section import Inputs

TEMPLATES = Path(__file__).with_name("templates")
SCRIPTS = ("theme.js", "contents.js", "tables.js", "enlarge.js", "cards.js", "browse.js")
# IDs that the template itself gives, besides those of the browsing views.
IDS = ("main", "iou-per-class", "browse", "browse-data", "needs-script", "theme", "iou-caption")


def build_html(page: str, inputs: Inputs) -> str:
    """The report in one HTML file, without anything to load; `page` is the report in markdown.

    Figures are read from paths relative to the folder of reports.
    """
    blocks = read_document(page, IdRegistry([*IDS, *(f"browse-{name}" for name in TASKS)]))
    blocks, footer = _split_footer(blocks)
    title = next((block.html.striptags() for block in blocks if isinstance(block, Heading)), "Report")
    script = "\n".join((TEMPLATES / name).read_text(encoding="utf-8") for name in SCRIPTS)
    iou = (
        class_iou(inputs.results["segmentation"], inputs.manifest.classes) if "segmentation" in inputs.results else None
    )
    return _render(
        title=title,
        blocks=blocks,
        footer=footer,
        iou=iou,
        browsing=build_browsing(inputs),
        style=Markup((TEMPLATES / "style.css").read_text(encoding="utf-8")),
        script=Markup(script),
        # The browser runs no other script, wherever it might come from.
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
    )


def _render(**context: Any) -> str:
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        undefined=StrictUndefined,
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=lambda value: (
            value if isinstance(value, Markup) or not isinstance(value, str) else printable_line(value)
        ),
    )
    return environment.get_template("page.html").render(context)


def _printable(value: Any) -> Any:
    """A value of the template; names in it without the control characters that a file may have brought in."""
    return printable_line(value) if isinstance(value, str) and not isinstance(value, Markup) else value


def _split_footer(blocks: list[Block]) -> tuple[list[Block], list[Block]]:
    """The blocks before and after the last rule, if no heading comes after it: versions and hashes."""
    for index in reversed(range(len(blocks))):
        block = blocks[index]
        if isinstance(block, Heading):
            break
        if isinstance(block, Prose) and block.html.startswith("<hr"):
            return blocks[:index], blocks[index + 1 :]
    return blocks, []
