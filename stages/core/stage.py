"""How a stage runs: its faults end in one line, its seconds go to an untracked file."""

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from stages.core.atomic import write_text

TIMINGS = Path("reports/timings.json")


class InputError(Exception):
    """Something that the user can mend. Its text names the key or file, what it holds and what is allowed."""


@contextmanager
def stage(name: str) -> Iterator[None]:
    """Run the body as stage `name` and record its seconds.

    Wrong input, a full disk or an unreadable file end in one line on stderr and exit code 2; other exceptions pass.
    """
    start = time.perf_counter()
    try:
        if "torch" in sys.modules:  # stages without a model must not pay for the import
            # Denormal floats are up to 100 times slower on a CPU, and too small to matter here.
            sys.modules["torch"].set_flush_denormal(True)
        yield
        note_seconds(name, time.perf_counter() - start)
    except (InputError, OSError, SafetensorError) as error:
        print(f"{name}: {_message(error)}", file=sys.stderr)
        sys.exit(2)
    except RuntimeError as error:
        if "DataLoader worker" not in str(error):
            raise
        first = first_line(error)
        print(f"{name}: {first} Fewer compute.workers need less shared memory (/dev/shm).", file=sys.stderr)
        sys.exit(2)


def first_line(fault: Exception) -> str:
    """What a fault says first, or its kind where it says nothing."""
    return (str(fault).strip().splitlines() or [type(fault).__name__])[0]


def _message(fault: Exception) -> str:
    """What a fault says, without the tracebacks that data loading workers pack into it."""
    if isinstance(fault, InputError):
        return str(fault)
    where = f": {fault.filename}" if getattr(fault, "filename", None) else ""
    lines = str(getattr(fault, "strerror", None) or fault).strip().splitlines() or [type(fault).__name__]
    return lines[-1] + where


def note_seconds(name: str, seconds: float) -> None:
    """Keep how long a stage took, outside everything that is compared or committed."""
    try:
        timings = json.loads(TIMINGS.read_text())
    except (FileNotFoundError, ValueError):
        timings = {}
    finished = time.strftime("%Y-%m-%dT%H:%M:%S%z")
    timings[name] = {"seconds": round(seconds, 1), "finished": finished, "revision": git_revision()}
    write_text(TIMINGS, json.dumps(timings, indent=2, sort_keys=True) + "\n")


def git_revision() -> str | None:
    """The commit that is checked out here, with `-dirty` after changes; None outside a repository."""
    try:
        described = subprocess.run(
            ["git", "describe", "--always", "--abbrev=40", "--exclude=*", "--dirty"], capture_output=True, text=True
        )
    except FileNotFoundError:  # no git on this machine
        return None
    return described.stdout.strip() or None
