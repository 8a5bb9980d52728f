"""A stage that has nothing to do says so in a file where its output would be, and whoever reads on finds it."""

import shutil
from pathlib import Path

from stages.writing import write_text

NAME = "absent.txt"


def declare_absent(folder: Path, reason: str) -> None:
    """Leave the reason, one line, in place of a stage's output; it is printed too."""
    shutil.rmtree(folder, ignore_errors=True)
    print(reason)
    write_text(folder / NAME, reason + "\n")


def absence(folder: Path) -> str | None:
    """Why there is no output in `folder`, or None where there is."""
    path = folder / NAME
    return path.read_text(encoding="utf-8").strip() if path.is_file() else None
