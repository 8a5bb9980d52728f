"""Atomic writes: a reader sees a whole file or folder, or none."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Yield a temporary path to write to; rename it to `path` on success, delete it on failure.

    Parent folders are created. Raises `OSError` as the writer does.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    # In the same folder, as a rename is atomic only within one file system.
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def atomic_dir(folder: Path) -> Iterator[Path]:
    """Yield a new temporary folder to fill; rename it to `folder` on success, delete it on failure.

    If another process creates `folder` meanwhile, its folder stays. Parent folders are created.
    """
    temporary = folder.with_name(f"{folder.name}.{os.getpid()}.tmp")
    remove_folders(temporary)  # of a killed process that had the same process ID
    temporary.mkdir(parents=True)
    try:
        yield temporary
        if not folder.exists():
            temporary.rename(folder)
    finally:
        remove_folders(temporary)


def write_text(path: Path, text: str) -> None:
    """Write `text` to `path` as UTF-8, atomically."""
    with atomic_write(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def remove_folders(*folders: Path) -> None:
    """Delete folders and their content; missing ones are fine.

    A stage calls this on its output folders first: files of an earlier run with other params must not survive.
    """
    for folder in folders:
        shutil.rmtree(folder, ignore_errors=True)
