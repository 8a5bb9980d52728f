"""Live runs: a training stage tells MLflow about its epochs while it trains.

The stage itself never imports MLflow, which takes seconds: it starts `stages.tracking.recorder` as a child process and
writes messages to its stdin, one JSON object per line. When the pipe closes, however the stage ended, the recorder
marks every run without a `finish` message as failed; after a kill, data loading processes hold the pipe open for up to
five seconds. A stage that ends well within `START_SECONDS` starts no process: it ends before anyone looks.

No error here ever costs a result: the run's record is the truth, and the report registers the runs that MLflow lacks.
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
# The process takes 4 to 7 s of CPU time, nearly all of it MLflow's import: about 50 s in all for the short trainings of
# the embedded profile.
START_SECONDS = 30.0


class Recorder:
    """The recorder process of a stage, started once the stage takes long. If not `enabled`, nothing is recorded."""

    def __init__(self, stage: str = "", enabled: bool = False):
        self.stage = stage
        self.enabled = enabled
        self._created = time.monotonic()
        self._waiting: list[bytes] = []  # messages for a process that is not started yet
        self._process: subprocess.Popen[bytes] | None = None

    def open(self, run: Run) -> "LiveRun":
        """Open a run: its metrics, history and artifacts are still empty."""
        live_run = LiveRun(self, run.key)
        self.send("open", run.key, run=asdict(run), machine=describe_machine())
        return live_run

    def send(self, kind: str, key: str, **content: Any) -> None:
        """Send a message about the run with this key, with the time in milliseconds."""
        if not self.enabled:
            return
        message = {"kind": kind, "key": key, "time": int(time.time() * 1000), **content}
        self._waiting.append(json.dumps(message).encode() + b"\n")
        takes_long = time.monotonic() - self._created >= START_SECONDS
        if self._process or (takes_long and kind != "finish"):  # not for a run that has just finished
            self._write_waiting()

    def close(self, failed: bool) -> None:
        """Close the pipe, and wait for the recorder for a few seconds. Prints a line if it has failed.

        A stage that has failed is recorded however short it was.
        """
        if failed and self._waiting:
            self._write_waiting()
        if self._process is None:
            return
        self._close_pipe()
        with suppress(subprocess.TimeoutExpired):
            if self._process.wait(WAIT_SECONDS):
                _warn(self.stage, f"its recorder ended with code {self._process.returncode}")

    def _write_waiting(self) -> None:
        """Start the process if necessary, and write the messages to it."""
        if self._process is None:
            self._process = _start(self.stage)
        if self._process is None:  # it cannot be started
            self.enabled = False
            return
        try:
            assert self._process.stdin is not None
            self._process.stdin.write(b"".join(self._waiting))
            self._process.stdin.flush()
        except OSError:  # the recorder has died
            self.enabled = False
            self._close_pipe()
        self._waiting.clear()

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
    """Yield the recorder of a stage's runs."""
    recorder = Recorder(stage, enabled)
    try:
        yield recorder
    except BaseException:
        recorder.close(failed=True)
        raise
    recorder.close(failed=False)


def _start(stage: str) -> subprocess.Popen[bytes] | None:
    try:
        return subprocess.Popen(
            [sys.executable, "-m", "stages.tracking.recorder", stage],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            start_new_session=True,  # Ctrl-C, or a signal to the stage's group, must not end the recorder as well
        )
    except OSError as error:
        _warn(stage, f"its recorder cannot be started: {error.strerror}")
        return None


def _warn(stage: str, reason: str) -> None:
    print(f"{stage}: not recorded live, {reason}; the report registers its runs", file=sys.stderr)
