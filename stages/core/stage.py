"""Stage wrapper: errors in the input end in one line; durations and devices go to an untracked file."""

import json
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from stages.core.atomic import write_text

# What torch says if tensors do not fit into shared memory, or if a worker was killed for it ("Bus error").
SHARED_MEMORY = re.compile("unable to .*(shared memory|</torch_)|DataLoader worker .*(is killed|exited unexpectedly)")
TIMINGS = Path("reports/timings.json")


class InputError(Exception):
    """An error that the user can fix. Its message names the key or file, its content and what is allowed."""


@contextmanager
def stage(name: str, record: bool = True) -> Iterator[None]:
    """Run the body as stage `name` and record its duration. Commands that are not stages of the pipeline do not.

    Wrong input, a full disk or an unreadable file end in a message without a traceback and exit code 2. Other
    exceptions pass.
    """
    start = time.perf_counter()
    torch = sys.modules.get("torch")  # stages without a model must not pay for the import
    try:
        if torch:
            # Denormal floats are up to 100 times slower on a CPU, and too small to matter here.
            torch.set_flush_denormal(True)
        yield
    except InputError as error:
        _exit(name, str(error))
    except OSError as error:
        path = f": {error.filename}" if error.filename else ""
        _exit(name, (error.strerror or _last_line(error)) + path)
    except SafetensorError as error:
        _exit(name, _last_line(error))
    except RuntimeError as error:
        cause = next(filter(SHARED_MEMORY.search, (first_line(error), _last_line(error))), None)
        if cause is None:
            raise
        # torch's workers pass tensors through shared memory; in containers, it is small by default.
        cause = cause.removeprefix("RuntimeError: ").rstrip(".")
        _exit(name, f"{cause}. Fewer compute.workers need less shared memory (/dev/shm).")
    finally:
        if torch:
            torch.set_flush_denormal(False)
    if record:
        try:
            write_duration(name, time.perf_counter() - start)
        except OSError as error:  # the stage's work is done: a file about it must not undo that
            print(f"{name}: duration not recorded: {error}", file=sys.stderr)


def first_line(error: Exception) -> str:
    """The first line of an error's message, or its type if it has none."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def _last_line(error: Exception) -> str:
    """The last line of an error's message, or its type if it has none.

    An error in a data loading worker has the worker's traceback as its message, which ends with the cause.
    """
    return (str(error).strip().splitlines() or [type(error).__name__])[-1]


def _exit(name: str, message: str) -> None:
    print(f"{name}: {message}", file=sys.stderr)
    sys.exit(2)


def write_duration(name: str, seconds: float) -> None:
    """Record a stage's duration and device in a file that is neither committed nor compared."""
    timings = read_timings()
    timings[name] = {
        "seconds": round(seconds, 1),
        "finished": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "revision": git_revision(),
        "device": used_device(),
    }
    write_text(TIMINGS, json.dumps(timings, indent=2, sort_keys=True) + "\n")


def used_device() -> str:
    """The name of the GPU if this process has computed on one, else `cpu`."""
    torch = sys.modules.get("torch")  # stages without a model must not pay for the import
    # torch starts CUDA when a process first needs it, so a stage that only imports torch has not used the GPU.
    if torch and torch.cuda.is_initialized():
        return torch.cuda.get_device_name()
    return "cpu"


def read_timings() -> dict[str, dict]:
    """What is recorded by stage: `seconds`, `finished`, `revision`, `device`. Empty if missing or invalid."""
    try:
        return json.loads(TIMINGS.read_text())
    except (FileNotFoundError, ValueError):
        return {}


def git_revision() -> str | None:
    """The checked-out commit, with `-dirty` if files have changed; None outside a repository."""
    try:
        result = subprocess.run(
            ["git", "describe", "--always", "--abbrev=40", "--exclude=*", "--dirty"], capture_output=True, text=True
        )
    except FileNotFoundError:  # git is not installed
        return None
    return result.stdout.strip() or None
