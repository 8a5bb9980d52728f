"""A table of the report: one DataFrame of printed cells, as markdown, CSV and LaTeX, and aligned for the terminal."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import pandas as pd

from stages.core.atomic import write_text
from stages.core.messages import printable_line
from stages.report.markdown import Markdown, escape

LATEX = {
    "\\": r"\textbackslash{}",
    "&": r"\&",
    "%": r"\%",
    "$": r"\$",
    "#": r"\#",
    "_": r"\_",
    "{": r"\{",
    "}": r"\}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "|": r"\textbar{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
}


@dataclass(frozen=True)
class Table:
    """`frame` holds text as it is printed; the columns `left` are aligned to the left, the others to the right.

    `title` is the table's number, such as `Table 1`. LaTeX counts its tables itself.
    """

    caption: str
    frame: pd.DataFrame
    left: tuple[str, ...]
    title: str | None = None

    @classmethod
    def from_rows(cls, caption: str, columns: Sequence[str], rows: Sequence[Sequence[str]], left: int = 1) -> Self:
        """A table of rows of cells, whose first `left` columns are aligned to the left."""
        return cls(caption, pd.DataFrame(rows, columns=list(columns), dtype=object), tuple(columns[:left]))

    def __bool__(self) -> bool:
        """Whether the table has rows."""
        return len(self.frame) > 0

    @property
    def heading(self) -> str:
        """The caption after the title, if the table has one."""
        return f"{self.title}. {self.caption}" if self.title else self.caption

    def markdown(self) -> Markdown:
        """A GitHub table under its caption."""
        # Bold by underscores: the star in a caption would end bold by stars.
        return Markdown(f"__{self.heading}__\n\n{self._layout(self.frame.map(escape).rename(columns=escape), 'pipe')}")

    def plain(self) -> str:
        """Aligned columns under the caption, for a terminal."""
        frame = self.frame.map(printable_line).rename(columns=printable_line)
        return f"{self.heading}\n{self._layout(frame, 'simple')}"

    def latex(self, name: str) -> str:
        """A LaTeX table for the package booktabs, with the label `tab:NAME`."""
        alignment = "".join("l" if column in self.left else "r" for column in self.frame)
        frame = self.frame.map(escape_latex).rename(columns=escape_latex)
        return frame.to_latex(
            index=False,
            escape=False,  # pandas' own escaping leaves `|` and `<`, which many fonts print as other characters
            caption=escape_latex(self.caption),
            label=f"tab:{name}",
            column_format=alignment,
        )

    def write(self, folder: Path, name: str) -> None:
        """Write `NAME.md`, `NAME.csv` and `NAME.tex` to `folder`."""
        write_text(folder / f"{name}.md", f"{self.markdown()}\n")
        write_text(folder / f"{name}.csv", self.frame.to_csv(index=False))
        write_text(folder / f"{name}.tex", self.latex(name))

    def _layout(self, frame: pd.DataFrame, style: str) -> str:
        alignment = ["left" if column in self.left else "right" for column in self.frame]
        # Cells are text already: tabulate must not round them, or read a name such as `1e5` as a number.
        return frame.to_markdown(index=False, tablefmt=style, colalign=alignment, disable_numparse=True)


def escape_latex(text: str) -> str:
    """LaTeX that prints `text` as it is."""
    return "".join(LATEX.get(character, character) for character in printable_line(text))
