"""The live runs of a stage, as MLflow holds them: running while the stage trains, then finished, failed or deleted."""

import base64
import io
from dataclasses import dataclass, field
from queue import SimpleQueue

from mlflow import MlflowClient
from mlflow.entities import Metric
from PIL import Image

from stages.core.runs import Run, read_run
from stages.tracking.abandoned import mark_abandoned, owner_tag
from stages.tracking.content import IDENTITY, close_run, epoch_metrics, failed_on_error, log_metrics, open_run
from stages.tracking.store import connect, errors_as_warning, experiment_id, find_finished


def record_messages(stage: str, messages: "SimpleQueue[dict | None]") -> None:
    """Record a stage's messages until None; then mark the runs that it has not finished as failed.

    After an error of the store, which is printed in one line, messages are read but not recorded any more.
    """
    live_runs = LiveRuns()
    usable = True
    ended = False
    while not ended:
        # All messages that have arrived: epochs that waited for a slow store take one request together.
        batch = [messages.get()]
        while not messages.empty():
            batch.append(messages.get())
        ended = batch[-1] is None
        usable = usable and _record_batch(stage, live_runs, batch)


def _record_batch(stage: str, live_runs: "LiveRuns", batch: list[dict | None]) -> bool:
    """Whether the store has taken the messages; if not, a line says so."""
    # One deadline per batch: a training may take days.
    with errors_as_warning(f"{stage} not recorded live"):
        for message in batch:
            if message is None:
                live_runs.fail_unfinished()
            else:
                live_runs.record(message)
        live_runs.log_epochs()
        return True
    return False


@dataclass
class LiveRun:
    """A run that MLflow shows as running; `metrics` are not in the store yet."""

    run_id: str
    task: str
    metrics: list[Metric] = field(default_factory=list)


class LiveRuns:
    """The runs that a stage has opened and not finished yet."""

    def __init__(self) -> None:
        self._client: MlflowClient | None = None
        self._runs: dict[str, LiveRun] = {}  # by key

    def record(self, message: dict) -> None:
        """Record a message of `stages.core.live`."""
        key = message["key"]
        match message["kind"]:
            case "open":
                self._open(Run(**message["run"]), message["time"], message["machine"])
            case "epoch":
                self._runs[key].metrics += epoch_metrics(message["row"], message["time"])
            case "image":
                self._log_image(self._runs[key], message)
            case "finish":
                self._finish(self._runs.pop(key), key)

    def log_epochs(self) -> None:
        """Write the metrics that are not in the store yet."""
        for run in self._runs.values():
            self._log_metrics(run)

    def fail_unfinished(self) -> None:
        """Mark all open runs as failed."""
        self.log_epochs()
        while self._runs:
            _, run = self._runs.popitem()
            self.client.set_terminated(run.run_id, "FAILED")

    @property
    def client(self) -> MlflowClient:
        if self._client is None:
            self._client = connect()
        return self._client

    def _open(self, run: Run, time: int, machine: dict[str, str]) -> None:
        if not self._runs:
            mark_abandoned(self.client, [experiment_id(self.client, run.task)])
        run_id = open_run(self.client, run, time, machine | owner_tag())
        self._runs[run.key] = LiveRun(run_id, run.task)

    def _log_metrics(self, run: LiveRun) -> None:
        log_metrics(self.client, run.run_id, run.metrics)
        run.metrics.clear()

    def _log_image(self, run: LiveRun, message: dict) -> None:
        image = Image.open(io.BytesIO(base64.b64decode(message["png"])))
        settings = {"key": message["name"], "step": message["epoch"], "timestamp": message["time"]}
        self.client.log_image(run.run_id, image, **settings, synchronous=True)

    def _finish(self, live_run: LiveRun, key: str) -> None:
        """Finish a run from its record. If a finished run has the same record already, that one stays alone."""
        with failed_on_error(self.client, live_run.run_id):
            run = read_run(live_run.task, key)
            if find_finished(self.client, experiment_id(self.client, run.task), IDENTITY, run.identity):
                self.client.set_terminated(live_run.run_id)
                self.client.delete_run(live_run.run_id)
            else:
                self._log_metrics(live_run)
                close_run(self.client, live_run.run_id, run)
