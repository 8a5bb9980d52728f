"""The trained model of a run, logged so that `mlflow.pyfunc.load_model` loads it in any process.

A logged model holds the weights and the code that predicts with them, so it needs neither this repository nor its data.
It is put together from files: neither torch nor the model is loaded for that.
"""

import json
import shutil
import warnings
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from mlflow import MlflowClient
from mlflow.entities import LoggedModelOutput
from mlflow.entities import Run as MlflowRun
from mlflow.models import Model, ModelSignature
from mlflow.types import ColSpec, DataType, Schema, TensorSpec
from safetensors import safe_open

from stages.core.runs import Run, package_versions
from stages.models.checkpoints.record import read_checkpoint
from stages.tracking.content import STAGES, final_metrics, log_metrics

LOADERS = "stages.tracking.pyfunc"  # the package with a loader per task
# What the loaders import. Every model has the code of all, as a process imports `stages` once for all that it loads.
CODE = ("core", "params", "data", "models", "features", "segmentation", "classification", "tracking/pyfunc")
# What the loaders import, and what timm does.
PACKAGES = (
    "annotated-types",
    "mlflow",
    "numpy",
    "pandas",
    "pillow",
    "pyarrow",
    "pydantic",
    "ruamel.yaml",
    "safetensors",
    "timm",
    "torch",
    "torchvision",
    "tqdm",
)
IMAGES = TensorSpec(np.dtype(np.uint8), (-1, -1, -1, 3))  # RGB images of one size
MASKS = TensorSpec(np.dtype(np.uint8), (-1, -1, -1))


@dataclass(frozen=True)
class Kind:
    """What the models of a task return.

    `names` are the two keys under which the metadata of the weights' file holds the names of classes or labels.
    """

    outputs: Schema
    names: tuple[str, str]


KINDS = {
    "segmentation": Kind(Schema([MASKS]), ("head", "classes")),
    "classification": Kind(
        Schema([ColSpec(DataType.string, "label"), ColSpec(DataType.float, "probability")]), ("classifier", "labels")
    ),
}


def log_trained_model(client: MlflowClient, stored: MlflowRun, run: Run) -> str:
    """Log the model of a finished run of a task in `KINDS`, with the run's metrics; return the model's ID.

    Raises `OSError`, `SafetensorError` or `InputError` if its files are missing or unreadable.
    """
    run_id = stored.info.run_id
    with TemporaryDirectory() as folder:
        weights = Path(folder) / "weights"
        metadata = _collect_weights(run, weights)
        params = {key: str(value) for key, value in run.params.items()}
        experiment = stored.info.experiment_id
        logged = client.create_logged_model(experiment, run.key, run_id, params=params, model_type=run.task)
        model = Model(
            artifact_path=logged.artifact_location,
            run_id=run_id,
            model_uuid=logged.model_id,
            model_id=logged.model_id,
            signature=ModelSignature(Schema([IMAGES]), KINDS[run.task].outputs),
            metadata=metadata,
        )
        try:
            _save(Path(folder), f"{LOADERS}.{run.task}", weights, model)
            client.log_model_artifacts(logged.model_id, f"{folder}/model")
        except BaseException:
            client.finalize_logged_model(logged.model_id, "FAILED")
            raise
    client.finalize_logged_model(logged.model_id, "READY")
    client.log_outputs(run_id, [LoggedModelOutput(logged.model_id, 0)])
    # With the time at which the run got them: another one would make them second values of the run's metrics.
    log_metrics(client, run_id, final_metrics(run, stored.info.end_time, logged.model_id))
    return logged.model_id


def _save(folder: Path, loader: str, weights: Path, model: Model) -> None:
    """Write a model with its weights and code to `folder / "model"`."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # MLflow's of its own type hints
        import mlflow.pyfunc

    mlflow.pyfunc.save_model(
        str(folder / "model"),
        mlflow_model=model,
        loader_module=loader,
        data_path=str(weights),
        code_paths=[str(_copy_code(folder))],
        # MLflow would load the model to find out what it imports.
        pip_requirements=[f"{package}=={version}" for package, version in package_versions(*PACKAGES).items()],
    )


def _collect_weights(run: Run, folder: Path) -> dict[str, Any]:
    """Copy the weights of a run to `folder`, with the `model.json` that its loader reads; return the metadata."""
    folder.mkdir()
    source = Path(run.artifacts["weights"])
    with safe_open(source, framework="numpy") as file:
        key, names = KINDS[run.task].names
        metadata = {names: json.loads(file.metadata()[key])[names]}
    # A classifier that was trained in float64 is stored and evaluated in float32.
    precision = run.inputs["precision"]
    model = {"precision": "float32" if precision == "float64" else precision}
    files = {"weights": source}
    if run.task == "segmentation":
        model["source"] = run.inputs["backbone"]
        files["backbone"] = read_checkpoint("backbone", model["source"]).file
    for name, path in files.items():
        model[name] = f"{name}{path.suffix}"
        shutil.copy(path, folder / model[name])
    (folder / "model.json").write_text(json.dumps(model))
    return metadata


def _copy_code(folder: Path) -> Path:
    """Copy the modules that the loaders import to a package in `folder`; return the package's path."""
    package = folder / STAGES.name
    for name in CODE:
        shutil.copytree(STAGES / name, package / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("__init__.py", "tracking/__init__.py"):
        shutil.copy(STAGES / name, package / name)
    return package
