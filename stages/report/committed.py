"""Files of the report as git holds them at a commit."""

import subprocess
from pathlib import Path

from stages.core.stage import InputError
from stages.report.section import ROOT


def resolve(revision: str) -> str:
    """The short hash of a commit. Raises `InputError` with git's own message if there is none, or no repository."""
    return _run_git("log", "-1", "--format=%h", "--end-of-options", revision, "--").strip()


def read_committed(commit: str, path: Path) -> str:
    """The content of a file at a commit. Raises `InputError` if it has no such file."""
    return _run_git("show", f"{commit}:./{path.as_posix()}")


def describe_files(commit: str) -> str:
    """How many files under `reports/` differ from those of a commit, in one line."""
    total = _run_git("ls-tree", "-r", "-z", "--name-only", commit, "--", str(ROOT)).count("\0")
    changed = _run_git("diff", "-z", "--name-only", commit, "--", str(ROOT))
    added = _run_git("ls-files", "-z", "--others", "--exclude-standard", "--", str(ROOT))
    paths = (changed + added).split("\0")[:-1]
    if not paths:
        return f"all {total} equal"
    pictures = sum(path.endswith(".png") for path in paths)
    return f"{len(paths)} differ from the {total} committed (text {len(paths) - pictures}, pictures {pictures})"


def _run_git(*command: str) -> str:
    try:
        result = subprocess.run(["git", *command], capture_output=True, text=True, encoding="utf-8")
    except FileNotFoundError:
        raise InputError("git is not installed; the committed numbers are read with it") from None
    if result.returncode:
        message = result.stderr.strip().splitlines()[0].removeprefix("fatal: ")
        raise InputError(f"git {command[0]}: {message}")
    return result.stdout
