"""Live runs: a training stage tells MLflow about its epochs while it trains.

The stage itself never imports MLflow, which takes seconds: it starts `stages.tracking.recorder` as a child process and
writes messages to its stdin, one JSON object per line. When the pipe closes, however the stage ended, the recorder
marks every run without a `finish` message as failed; after a kill, data loading processes hold the pipe open for up to
five seconds. No error here ever costs a result: the run's record is the truth, and the report registers the runs that
MLflow lacks.
"""

import base64
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict
from typing import Any

from stages.core.machine import describe_machine
from stages.core.runs import Run

# A local store needs less than a second after the last message, plus what is left of MLflow's import. A recorder that
# takes longer (a slow server) is left alone: it finishes by itself, with all messages in its memory.
WAIT_SECONDS = 10.0


class Recorder:
    """The recorder process of a stage; without one, nothing is recorded."""

    def __init__(self, stage: str = "", process: subprocess.Popen[bytes] | None = None):
        self.stage = stage
        self._process = process
        self._opened = False

    def open(self, run: Run) -> "LiveRun":
        """Open a run: its metrics, history and artifacts are still empty."""
        self._opened = True
        live_run = LiveRun(self, run.key)
        self.send("open", run.key, run=asdict(run), machine=describe_machine())
        return live_run

    def send(self, kind: str, key: str, **content: Any) -> None:
        """Send a message about the run with this key, with the time in milliseconds."""
        if self._process is None or self._process.stdin is None or self._process.stdin.closed:
            return
        message = {"kind": kind, "key": key, "time": int(time.time() * 1000), **content}
        try:
            self._process.stdin.write(json.dumps(message).encode() + b"\n")
            self._process.stdin.flush()
        except OSError:  # the recorder has died
            self._close_pipe()

    def close(self) -> None:
        """Close the pipe, and wait for the recorder for a few seconds. Prints a line if it has failed."""
        if self._process is None:
            return
        if not self._opened:  # wrong input: there is nothing to record
            self._process.kill()
            self._close_pipe()
            self._process.wait()
            return
        self._close_pipe()
        with suppress(subprocess.TimeoutExpired):
            if self._process.wait(WAIT_SECONDS):
                _warn(self.stage, f"its recorder ended with code {self._process.returncode}")

    def _close_pipe(self) -> None:
        assert self._process is not None and self._process.stdin is not None
        with suppress(OSError):  # closing writes what is left in the buffer
            self._process.stdin.close()


class LiveRun:
    """A run that is open in MLflow, until `finish`."""

    def __init__(self, recorder: Recorder, key: str):
        self._recorder = recorder
        self._key = key

    def epoch(self, row: dict[str, Any]) -> None:
        """Record an epoch: a row of the run's history."""
        self._recorder.send("epoch", self._key, row=row)

    def image(self, name: str, png: bytes, epoch: int) -> None:
        """Record a picture that changes with the epochs. MLflow shows pictures of one name as a series."""
        self._recorder.send("image", self._key, name=name, png=base64.b64encode(png).decode(), epoch=epoch)

    def finish(self) -> None:
        """Finish the run: its record has been written, and MLflow gets its metrics from there."""
        self._recorder.send("finish", self._key)


OFF = Recorder()  # records nothing


@contextmanager
def record_live(stage: str, enabled: bool) -> Iterator[Recorder]:
    """Yield the recorder of a stage's runs. Enter early: it imports MLflow while the stage reads its input."""
    recorder = _start(stage) if enabled else OFF
    try:
        yield recorder
    finally:
        recorder.close()


def _start(stage: str) -> Recorder:
    try:
        process = subprocess.Popen(
            [sys.executable, "-m", "stages.tracking.recorder", stage],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            start_new_session=True,  # Ctrl-C, or a signal to the stage's group, must not end the recorder as well
        )
    except OSError as error:
        _warn(stage, f"its recorder cannot be started: {error.strerror}")
        return OFF
    return Recorder(stage, process)


def _warn(stage: str, reason: str) -> None:
    print(f"{stage}: not recorded live, {reason}; the report registers its runs", file=sys.stderr)
