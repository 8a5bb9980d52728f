"""A table, as markdown and as CSV."""

import csv
from dataclasses import dataclass
from pathlib import Path

from stages.core.atomic import atomic_write


@dataclass(frozen=True)
class Table:
    """`rows` hold text, as it is to be read; columns after the first `left` ones are set to the right."""

    caption: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    left: int = 1

    def markdown(self) -> str:
        """A GitHub table with its caption above."""
        rules = ["---"] * self.left + ["---:"] * (len(self.columns) - self.left)
        lines = [_line(self.columns), _line(rules), *(_line(row) for row in self.rows)]
        return "\n".join([f"**{self.caption}**", "", *lines])

    def plain(self) -> str:
        """Aligned columns for a terminal."""
        widths = [max(len(row[index]) for row in (self.columns, *self.rows)) for index in range(len(self.columns))]
        lines = []
        for row in (self.columns, *self.rows):
            cells = list(zip(row, widths, strict=True))
            set_left = [cell.ljust(width) for cell, width in cells[: self.left]]
            lines.append("  ".join([*set_left, *(cell.rjust(width) for cell, width in cells[self.left :])]).rstrip())
        return "\n".join([self.caption, *lines])

    def write_csv(self, path: Path) -> None:
        """The same cells, comma-separated."""
        with atomic_write(path) as beside, beside.open("w", encoding="utf-8", newline="") as file:
            csv.writer(file, lineterminator="\n").writerows([self.columns, *self.rows])


def _line(cells) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"
