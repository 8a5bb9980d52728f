"""What an MLflow run holds: tags, params and dataset from its start, metrics as epochs end, the record at its end.

What the report adds to a run, such as figures and the trained model, is in `attachments.py`.
"""

import os
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

from mlflow import MlflowClient
from mlflow.entities import Metric, Param
from mlflow.utils.mlflow_tags import MLFLOW_GIT_COMMIT, MLFLOW_SOURCE_NAME, MLFLOW_SOURCE_TYPE

from stages.core.runs import Run
from stages.core.stage import git_revision
from stages.tracking.dataset import dataset_input
from stages.tracking.store import experiment_id

STAGES = Path(__file__).parents[1]
IDENTITY = "vitlab.identity"  # a tag: the SHA-256 of the record from which the run was registered
PROFILE = "profile"  # a tag
DVC_EXPERIMENT = "dvc.experiment"  # a tag
INPUTS = "inputs/"  # starts the names of params that are data and weights, not settings
METRICS_PER_REQUEST = 1000  # MLflow's limit
EPOCH = "epoch/"  # starts the names of metrics that have a value per epoch


def milliseconds() -> int:
    """The time now, as MLflow counts it."""
    return int(time.time() * 1000)


def open_run(client: MlflowClient, run: Run, start_time: int, live_tags: dict[str, str] | None = None) -> str:
    """Create an MLflow run in the task's experiment, with what is known before its first epoch; return its ID.

    Metrics and details of `run` may still be empty. `start_time` is in milliseconds. `live_tags` describe the machine
    and the process of a training; a run from a record has none, as it does not say where it was made.
    """
    experiment = experiment_id(client, run.task)
    tags = _tags(run) | (live_tags or {})
    created = client.create_run(experiment, start_time=start_time, tags=tags, run_name=run.key)
    run_id = created.info.run_id
    with failed_on_error(client, run_id):
        client.log_batch(run_id, params=_params(run))
        dataset = dataset_input(run)
        if dataset:
            client.log_inputs(run_id, [dataset])
    return run_id


@contextmanager
def failed_on_error(client: MlflowClient, run_id: str) -> Iterator[None]:
    """Mark a run as failed if the body raises."""
    try:
        yield
    except BaseException:
        client.set_terminated(run_id, "FAILED")
        raise


def close_run(client: MlflowClient, run_id: str, run: Run) -> None:
    """Add the finished run's metrics and its record; from now on the store has this run.

    The final metrics' time is the run's end.
    """
    now = milliseconds()
    log_metrics(client, run_id, final_metrics(run, now))
    client.log_artifact(run_id, str(run.path))
    client.set_tag(run_id, IDENTITY, run.identity)
    client.set_terminated(run_id, "FINISHED", now)


def log_metrics(client: MlflowClient, run_id: str, metrics: list[Metric]) -> None:
    """Log any number of metrics in as few requests as possible: each is a round trip, or a wait for the disk."""
    for start in range(0, len(metrics), METRICS_PER_REQUEST):
        client.log_batch(run_id, metrics=metrics[start : start + METRICS_PER_REQUEST])


def epoch_metrics(row: dict, timestamp: int) -> list[Metric]:
    """The metrics of an epoch, a row of a run's history, as `epoch/NAME`; the step is the epoch."""
    return [Metric(f"{EPOCH}{key}", value, timestamp, row["epoch"]) for key, value in _flatten(row) if key != "epoch"]


def final_metrics(run: Run, timestamp: int, model_id: str | None = None) -> list[Metric]:
    """A finished run's metrics, on its dataset; with `model_id`, they are its model's too."""
    used = dataset_input(run)
    dataset = {"dataset_name": used.dataset.name, "dataset_digest": used.dataset.digest} if used else {}
    return [Metric(key, float(value), timestamp, 0, model_id, **dataset) for key, value in run.metrics.items()]


_revision = cache(git_revision)  # the same for all runs of a report


def _tags(run: Run) -> dict[str, str]:
    tags = {
        "name": run.name,  # what runs with several seeds share
        "seed": None if run.seed is None else str(run.seed),
        PROFILE: run.params.get("profile"),
        "dvc.stage": run.stage,
        DVC_EXPERIMENT: os.environ.get("DVC_EXP_NAME"),
        MLFLOW_SOURCE_NAME: _source(run.stage),
        MLFLOW_SOURCE_TYPE: "LOCAL",
        MLFLOW_GIT_COMMIT: _revision(),
    }
    return {key: value for key, value in tags.items() if value}


def _source(stage: str) -> str | None:
    """The module or folder that a stage runs: it has the stage's name in `dvc.yaml`, without the part after `@`."""
    name, _, _ = stage.partition("@")
    for path in (*STAGES.glob(f"*/{name}.py"), STAGES / name):
        if path.exists():
            return str(path.relative_to(STAGES.parent))
    return None


def _params(run: Run) -> list[Param]:
    inputs = {f"{INPUTS}{key}": value for key, value in run.inputs.items()}
    return [Param(key, str(value)) for key, value in {**run.params, **inputs}.items()]


def _flatten(values: dict, prefix: str = "") -> Iterator[tuple[str, float]]:
    """The numbers of an epoch, those by class as `iou/CLASS`, in characters that MLflow allows; null is left out."""
    for key, value in values.items():
        # A class may have any name. MLflow rejects names that are not normalized paths, such as `a//b` and `..`, and
        # most punctuation.
        name = prefix + (re.sub(r"[^\w\-. :]", "_", str(key)).strip(".") or "_")
        if isinstance(value, dict):
            yield from _flatten(value, f"{name}/")
        elif isinstance(value, int | float):
            yield name, float(value)
