"""What an MLflow run holds of a record: tags, params and metrics."""

import os
import re
from collections.abc import Iterator

from mlflow.entities import Metric, Param
from mlflow.utils.mlflow_tags import MLFLOW_GIT_COMMIT, MLFLOW_RUN_NAME

from stages.core.runs import Run

IDENTITY = "vitlab.identity"  # a tag: the SHA-256 of the record from which the run was registered
EPOCH = "epoch/"  # starts the names of metrics that have a value per epoch


def run_tags(run: Run, revision: str | None) -> dict[str, str]:
    tags = {
        MLFLOW_RUN_NAME: run.key,
        IDENTITY: run.identity,
        "name": run.name,  # what runs with several seeds share
        "seed": None if run.seed is None else str(run.seed),
        "dvc.stage": run.stage,
        "dvc.experiment": os.environ.get("DVC_EXP_NAME"),
        MLFLOW_GIT_COMMIT: revision,
    }
    return {key: value for key, value in tags.items() if value}


def run_params(run: Run) -> list[Param]:
    return [Param(key, str(value)) for key, value in {**run.params, **run.inputs}.items()]


def run_metrics(run: Run, timestamp: int) -> Iterator[Metric]:
    """Final metrics by their own names, and the history as `epoch/NAME`, one step per epoch."""
    for key, value in run.metrics.items():
        yield Metric(key, float(value), timestamp, 0)
    for row in run.history:
        for key, value in _flatten(row):
            if key != "epoch":
                yield Metric(f"{EPOCH}{key}", value, timestamp, row["epoch"])


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
