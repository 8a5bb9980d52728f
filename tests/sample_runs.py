"""Runs of a head, and MLflow stores to register them in."""

import shutil
from functools import cache
from pathlib import Path
from tempfile import mkdtemp

import pytest
from mlflow import MlflowClient

from stages.core.runs import Run, write_run
from stages.tracking import store


def build_run(**changes) -> Run:
    fields = {
        "task": "segmentation",
        "name": "linear",
        "stage": "train_head@linear",
        "params": {"lr": 0.001, "kind": "linear"},
        "metrics": {"miou": 31.25, "best_epoch": 2},
        "details": {"absent_classes": ["boat"]},
        "history": [
            {"epoch": 1, "train_loss": 2.0, "miou": 10.0, "iou": {"a (b)": 1.0, "boat": None}},
            {"epoch": 2, "train_loss": 1.0, "miou": 31.25, "iou": {"a (b)": 2.0, "boat": None}},
        ],
    }
    return Run(**{**fields, **changes})


def write_runs(*runs: Run) -> list[Run]:
    for run in runs:
        write_run(run)
    return list(runs)


def enter_project(folder: Path, patch: pytest.MonkeyPatch) -> None:
    """Make `folder` the working directory, with a new MLflow store."""
    patch.chdir(folder)
    patch.setenv("DVC_ROOT", str(folder))
    patch.delenv("MLFLOW_TRACKING_URI", raising=False)
    shutil.copy(_new_store(), folder / "mlflow.db")


@cache  # creating a store takes two to three seconds
def _new_store() -> Path:
    folder = Path(mkdtemp(prefix="mlflow-store-"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DVC_ROOT", str(folder))
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        store.connect()
    return folder / "mlflow.db"


def runs_in_store() -> list:
    """All runs of the current store, as MLflow's entities."""
    client = MlflowClient(store.store_uri())
    return client.search_runs([experiment.experiment_id for experiment in client.search_experiments()])
