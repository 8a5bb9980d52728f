"""How a stage runs: its faults end in one line, its seconds go to an untracked file."""

import json
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from stages.writing import replacing

TIMINGS = Path("reports/timings.json")


class InputError(Exception):
    """Something that the user can mend. Its text names the key or file, what it holds and what is allowed."""


@contextmanager
def stage(name: str) -> Iterator[None]:
    """Run the body as stage `name`: `InputError` and `OSError` print one clear message and exit with 2."""
    start = time.perf_counter()
    try:
        yield
        note_seconds(name, time.perf_counter() - start)
    except InputError as fault:
        print(f"{name}: {fault}", file=sys.stderr)
        sys.exit(2)
    except OSError as fault:
        where = f": {fault.filename}" if fault.filename else ""
        print(f"{name}: {fault.strerror or fault}{where}", file=sys.stderr)
        sys.exit(2)


def note_seconds(name: str, seconds: float) -> None:
    """Keep how long a stage took, outside everything that is compared or committed."""
    try:
        timings = json.loads(TIMINGS.read_text())
    except (FileNotFoundError, ValueError):
        timings = {}
    timings[name] = {"seconds": round(seconds, 1), "finished": time.strftime("%Y-%m-%dT%H:%M:%S%z")}
    with replacing(TIMINGS) as beside:
        beside.write_text(json.dumps(timings, indent=2, sort_keys=True) + "\n")
