"""The report in markdown, as blocks of HTML: prose, tables and figures."""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from typing import ClassVar
from urllib.parse import unquote

from markdown_it import MarkdownIt
from markdown_it.token import Token
from markdown_it.tree import SyntaxTreeNode
from markupsafe import Markup, escape

from stages.report.html.pictures import Figure, embed_figure
from stages.report.section import ROOT

# The number that a cell starts with: "20.00*", "59.40 to 61.03", "1e-3", "+14.75", but not "88x88".
NUMBER = re.compile(r"[+-]?\d+(\.\d+)?(e[+-]?\d+)?(?![\w.])")
MISSING = {"", "-"}  # cells without a value
PANEL = re.compile(r"^\([a-z]\) ")  # the letter of a figure's panel in its caption


@dataclass(frozen=True)
class Heading:
    kind: ClassVar[str] = "heading"
    level: int
    id: str
    html: Markup


@dataclass(frozen=True)
class Prose:
    kind: ClassVar[str] = "prose"
    html: Markup


@dataclass(frozen=True)
class Cell:
    """`value` is the number to sort by, None if the cell has none."""

    html: Markup
    value: float | None = None


@dataclass(frozen=True)
class HtmlTable:
    """A table with its caption, if it has one; `numeric` tells for each column whether it holds numbers."""

    kind: ClassVar[str] = "table"
    id: str
    caption: Markup | None
    columns: tuple[Markup, ...]
    numeric: tuple[bool, ...]
    rows: tuple[tuple[Cell, ...], ...]

    @property
    def sortable(self) -> bool:
        """Whether rows can be read in any order: a row without a name belongs to the row above it."""
        return all(row[0].html for row in self.rows)


@dataclass(frozen=True)
class CaptionedFigure:
    figure: Figure
    alt: str
    caption: Markup


@dataclass(frozen=True)
class Figures:
    """Figures that follow each other."""

    kind: ClassVar[str] = "figures"
    figures: tuple[CaptionedFigure, ...]


Block = Heading | Prose | HtmlTable | Figures


class IdRegistry:
    """IDs for headings and tables, each given once."""

    def __init__(self, reserved: Iterable[str] = ()):
        self.used = set(reserved)

    def new_id(self, text: str) -> str:
        """An ID made from the words of `text`, with a number if it is already used."""
        base = re.sub(r"\W+", "-", text.lower()).strip("-") or "section"
        candidate = base
        number = 1
        while candidate in self.used:
            number += 1
            candidate = f"{base}-{number}"
        self.used.add(candidate)
        return candidate


@cache
def _parser() -> MarkdownIt:
    # Without raw HTML: names of classes and runs come from files and may contain tags, which must appear as text.
    parser = MarkdownIt("commonmark", {"html": False}).enable("table")
    # Only figures, which stand alone, are embedded. Any other image would be loaded from elsewhere.
    parser.add_render_rule("image", lambda renderer, tokens, index, options, env: escape(tokens[index].content))
    return parser


def read_document(page: str, ids: IdRegistry) -> list[Block]:
    """The blocks of a page in markdown. Figures are read from paths relative to the folder of reports."""
    nodes = SyntaxTreeNode(_parser().parse(page)).children
    blocks: list[Block] = []
    position = 0
    while position < len(nodes):
        node = nodes[position]
        following = nodes[position + 1] if position + 1 < len(nodes) else None
        if node.type == "heading":
            title = node.children[0]
            blocks.append(Heading(int(node.tag[1:]), ids.new_id(_text(title)), _inline_html(title)))
        elif following and following.type == "table" and _is_strong(node):
            blocks.append(_table(following, _inline_html(_inline_nodes(node)[0]), ids))
            position += 1
        elif node.type == "table":
            blocks.append(_table(node, None, ids))
        elif following and _is_figure(following) and _is_caption(node, following):
            _add_figure(blocks, following, _inline_html(node.children[0]))
            position += 1
        elif _is_figure(node):
            _add_figure(blocks, node, escape(_image(node).content))
        else:
            blocks.append(Prose(_html(node)))
        position += 1
    return blocks


def _table(node: SyntaxTreeNode, caption: Markup | None, ids: IdRegistry) -> HtmlTable:
    head, *bodies = node.children
    columns = [cell.children[0] for cell in head.children[0].children]
    rows = [[cell.children[0] for cell in row.children] for body in bodies for row in body.children]
    numeric = tuple(_is_numeric([_text(row[index]) for row in rows]) for index in range(len(columns)))
    cells = tuple(
        tuple(
            Cell(_inline_html(cell), parse_number(_text(cell)) if is_number else None)
            for cell, is_number in zip(row, numeric, strict=True)
        )
        for row in rows
    )
    name = ids.new_id("table")
    return HtmlTable(name, caption, tuple(_inline_html(column) for column in columns), numeric, cells)


def parse_number(text: str) -> float | None:
    """The number that a cell starts with, or None."""
    match = NUMBER.match(text)
    return float(match[0]) if match else None


def _is_numeric(texts: list[str]) -> bool:
    """Whether most cells of a column that have a value start with a number."""
    values = [text for text in texts if text not in MISSING]
    numbers = [text for text in values if parse_number(text) is not None]
    return 2 * len(numbers) > len(values)


def _is_strong(node: SyntaxTreeNode) -> bool:
    """Whether a node is a paragraph in bold: the caption of a table."""
    return node.type == "paragraph" and [child.type for child in _inline_nodes(node)] == ["strong"]


def _is_figure(node: SyntaxTreeNode) -> bool:
    """Whether a node is a paragraph of one image, which is a file."""
    return (
        node.type == "paragraph"
        and [child.type for child in _inline_nodes(node)] == ["image"]
        and "://" not in str(_image(node).attrs["src"])
    )


def _is_caption(node: SyntaxTreeNode, figure: SyntaxTreeNode) -> bool:
    """Whether a paragraph says again how the alt text of the figure after it ends: "(a) Masks", "Linear: Masks"."""
    if node.type != "paragraph":
        return False
    text = PANEL.sub("", _text(node.children[0]))
    return bool(text) and _image(figure).content.endswith(text)


def _add_figure(blocks: list[Block], node: SyntaxTreeNode, caption: Markup) -> None:
    """Add a figure to the last block if that is figures too, else as a new block."""
    image = _image(node)
    path = ROOT / unquote(str(image.attrs["src"]))
    figure = CaptionedFigure(embed_figure(path), image.content, caption)
    if blocks and isinstance(blocks[-1], Figures):
        blocks[-1] = Figures((*blocks[-1].figures, figure))
    else:
        blocks.append(Figures((figure,)))


def _image(node: SyntaxTreeNode) -> SyntaxTreeNode:
    (image,) = _inline_nodes(node)
    return image


def _inline_nodes(paragraph: SyntaxTreeNode) -> list[SyntaxTreeNode]:
    """What is inside a paragraph, without the empty texts that the parser leaves around emphasis."""
    return [node for node in paragraph.children[0].children if node.type != "text" or node.content]


def _html(node: SyntaxTreeNode) -> Markup:
    parser = _parser()
    return Markup(parser.renderer.render(node.to_tokens(), parser.options, {}))


def _inline_html(inline: SyntaxTreeNode) -> Markup:
    """The HTML of what is inside a paragraph, heading, cell or emphasis."""
    parser = _parser()
    tokens = [token for child in inline.children for token in child.to_tokens()]
    return Markup(parser.renderer.render([Token("inline", "", 0, children=tokens)], parser.options, {}))


def _text(inline: SyntaxTreeNode) -> str:
    """The plain text of what is inside a paragraph, heading or cell."""
    return "".join(_leaf_texts(inline))


def _leaf_texts(node: SyntaxTreeNode) -> Iterator[str]:
    for child in node.children:
        if child.type in ("softbreak", "hardbreak"):
            yield " "
        elif child.children:
            yield from _leaf_texts(child)
        else:
            yield child.content
