"""A stage that has nothing to do says so where its output would be, and whoever reads on finds it."""

import shutil
from pathlib import Path

from stages.core.atomic import write_text

NAME = "absent.txt"  # in place of a folder's files
MARK = b"absent: "  # what a file in place of another begins with


def mark_skipped(reason: str, *outputs: Path) -> None:
    """Leave the reason, one line, in place of a stage's outputs, files where they have a suffix; print it too."""
    print(reason)
    for output in outputs:
        if output.suffix:
            write_text(output, MARK.decode() + reason + "\n")
        else:
            shutil.rmtree(output, ignore_errors=True)
            write_text(output / NAME, reason + "\n")


def skip_reason(output: Path) -> str | None:
    """Why there is no output, or None where there is."""
    if output.is_dir():
        note = output / NAME
        return note.read_text(encoding="utf-8").strip() if note.is_file() else None
    if not output.is_file():
        return None
    with output.open("rb") as file:
        marked = file.read(len(MARK)) == MARK
        return file.read().decode().strip() if marked else None
