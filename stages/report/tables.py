"""A table of text cells: as markdown, as CSV, and aligned for the terminal."""

import csv
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from stages.core.atomic import atomic_write


@dataclass(frozen=True)
class Table:
    """`rows` hold text as it is printed; the first `left` columns are aligned to the left, the others to the right."""

    caption: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    left: int = 1

    @classmethod
    def from_dicts(cls, caption: str, rows: list[dict[str, str]], left: int = 1) -> Self:
        """A table with the rows' keys as columns; all rows have the same keys."""
        columns = tuple(rows[0]) if rows else ()
        return cls(caption, columns, tuple(tuple(row.values()) for row in rows), left)

    def markdown(self) -> str:
        """A GitHub table under its caption."""
        rules = ["---"] * self.left + ["---:"] * (len(self.columns) - self.left)
        lines = [_markdown_row(cells) for cells in (self.columns, rules, *self.rows)]
        caption = self.caption.replace("*", "\\*")  # "(* indicates ...)" would end the bold text
        return "\n".join([f"**{caption}**", "", *lines])

    def plain(self) -> str:
        """Aligned columns under the caption, for a terminal."""
        rows = (self.columns, *self.rows)
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = [self.caption]
        for row in rows:
            padded = [
                cell.ljust(width) if index < self.left else cell.rjust(width)
                for index, (cell, width) in enumerate(zip(row, widths, strict=True))
            ]
            lines.append("  ".join(padded).rstrip())
        return "\n".join(lines)

    def write_csv(self, path: Path) -> None:
        """Write the same cells, comma-separated."""
        with atomic_write(path) as temporary, temporary.open("w", encoding="utf-8", newline="") as file:
            csv.writer(file, lineterminator="\n").writerows([self.columns, *self.rows])


def _markdown_row(cells: Iterable[str]) -> str:
    # A line break would end the row.
    return "| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in cells) + " |"
