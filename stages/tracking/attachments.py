"""What the report adds to a finished run: figures, the captions as a table, and the trained model."""

import hashlib
from functools import cache
from pathlib import Path

import pandas as pd
from mlflow import MlflowClient
from mlflow.entities import Run as MlflowRun
from mlflow.utils.mlflow_tags import MLFLOW_LOGGED_ARTIFACTS
from safetensors import SafetensorError

from stages.core.hashes import file_sha256
from stages.core.runs import Run
from stages.core.stage import InputError, first_line
from stages.tracking.trained_model import KINDS, log_trained_model

CAPTIONS = "captions.json"
FILES = "vitlab.files"  # a tag: a hash of the files that the report has added
MODEL = "vitlab.model"  # a tag: the ID of the run's model


def attach_files(client: MlflowClient, stored: MlflowRun, paths: list[Path], folder: str) -> None:
    """Upload files to a folder of a run, unless it has exactly these. A file of the same name is replaced."""
    content = "".join(f"{path.name} {file_sha256(path)}\n" for path in paths)
    digest = hashlib.sha256(content.encode()).hexdigest()[:16]
    if stored.data.tags.get(FILES) == digest:
        return
    for path in paths:
        client.log_artifact(stored.info.run_id, str(path), folder)
    client.set_tag(stored.info.run_id, FILES, digest)


def attach_captions(client: MlflowClient, stored: MlflowRun, run: Run) -> None:
    """Log the captions of a run as a table that MLflow shows, unless it has them."""
    if CAPTIONS not in stored.data.tags.get(MLFLOW_LOGGED_ARTIFACTS, ""):
        captions = _read_captions(run.artifacts["predictions"])
        rows = captions[(captions["cell"] == run.name) & (captions["seed"].isna() | (captions["seed"] == run.seed))]
        client.log_table(stored.info.run_id, rows[["image_id", "caption", "reference"]], CAPTIONS)


@cache  # all cells and seeds are in one file
def _read_captions(path: str) -> pd.DataFrame:
    return pd.read_parquet(path, columns=["cell", "seed", "image_id", "caption", "reference"])


def attach_model(client: MlflowClient, stored: MlflowRun, run: Run) -> str | None:
    """Log the trained model of a run, unless it has it; return why that is not possible, or None."""
    if run.task in KINDS and MODEL not in stored.data.tags:
        try:
            model_id = log_trained_model(client, stored, run)
        except (InputError, SafetensorError, FileNotFoundError) as error:
            return first_line(error)
        client.set_tag(stored.info.run_id, MODEL, model_id)
    return None
