"""The model of a run, loaded by MLflow in a process that knows nothing of this project, predicts what the run did."""

import ast
import json
import os
import subprocess
import sys
from importlib.metadata import packages_distributions
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from conftest import ROOT, write_mask
from mlflow import MlflowClient
from mlflow.models import get_model_info
from packaging.requirements import Requirement
from PIL import Image
from sample_runs import enter_project, runs_in_store

from stages.classification import finetune
from stages.data import manifest as manifests
from stages.data.manifest import LABELED, Manifest, Row, validate_manifest
from stages.models import vit
from stages.models.checkpoints.record import Checkpoint, write_checkpoint
from stages.params.classification import Setting
from stages.params.compute import Compute
from stages.params.experiment import load_experiment
from stages.params.profiles import ViewParams
from stages.params.segmentation import Head
from stages.segmentation import extract, train_head
from stages.tracking.registration import register
from stages.tracking.report_runs import Group, show_in_report
from stages.tracking.store import store_uri

SMALL = vit.Architecture(side=24, dim=12, depth=2, heads=3, stem=(4, 4, 4, 8))
BACKBONE = "vit.safetensors"
# Loads the models in the order of the arguments. It must not find this project in the working directory.
PREDICT = """
import json, sys
import mlflow, numpy as np
images = np.load("images.npy")
mlflow.set_tracking_uri(sys.argv[1])
outputs = [mlflow.pyfunc.load_model(uri).predict(images) for uri in sys.argv[2:]]
labels = next(output for output in outputs if not isinstance(output, np.ndarray))
masks = next(output for output in outputs if isinstance(output, np.ndarray))
np.savez("outputs.npz", masks=masks, labels=labels["label"].to_numpy("U"), probabilities=labels["probability"])
json.dump(sorted(sys.modules), open("modules.json", "w"))
"""


def write_images(folder):
    """24x24 pixels, half of them for validation; the mask's class and the label are the color."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    rows = []
    for index in range(12):
        pixels = rng.integers(0, 120, (24, 24, 3))
        mask = np.zeros((24, 24), np.uint8)
        mask[8:20, 4:16] = 1 + index % 2
        pixels[..., index % 2][mask > 0] += 130
        image = folder / f"{index}.png"
        Image.fromarray(pixels.astype(np.uint8)).save(image)
        write_mask(folder / f"{index}_mask.png", mask)
        split = "train" if index < 6 else "val"
        rows.append(Row(str(index), split, str(image), str(folder / f"{index}_mask.png"), label=index % 2))
    return rows


def small_experiment():
    experiment = load_experiment(ROOT / "params.yaml")
    setting = Setting(lr=3e-3, augment=False, size=24, batch_size=3, accumulate=1, epochs=1)
    active = {
        "backbone": BACKBONE,
        "view": ViewParams(short_side_min=24, short_side_max=28, crop=24),
        "classifier": experiment.embedded.classifier.model_copy(update={"backbone": BACKBONE}),
    }
    heads = {"heads": {"linear": Head(kind="linear")}, "views": 1, "epochs": 1, "batch_size": 3}
    return experiment.model_copy(
        update={
            "compute": Compute(precision="float32", compile=False, workers=0, live=False),
            "embedded": experiment.embedded.model_copy(update=active),
            "segmentation": experiment.segmentation.model_copy(update=heads),
            "classification": experiment.classification.model_copy(update={"settings": {"base": setting}}),
        }
    )


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A head and a classifier that the stages have trained, by task, shown in a report."""
    with pytest.MonkeyPatch.context() as patch:
        enter_project(tmp_path_factory.mktemp("project"), patch)
        manifest = Manifest(tuple(write_images(Path("pictures"))), "pictures", ("sky", "red", "green"), ("r", "g"))
        manifest = validate_manifest(manifest)
        for path in (manifests.MANIFEST, LABELED):
            manifests.write_manifest(manifest, path)
        torch.manual_seed(0)
        vit.save(Path(BACKBONE), vit.build(SMALL), SMALL)
        for kind in ("backbone", "classifier"):
            write_checkpoint(kind, Checkpoint(BACKBONE, BACKBONE, "0"))
        experiment = small_experiment()
        patch.setattr(extract, "load_experiment", lambda: experiment)
        extract.main()
        trained = [
            train_head.run_head(experiment, "linear", 1),
            finetune.finetune(experiment, "base", 1, manifest),
        ]
        show(trained)
        yield {run.task: run for run in trained}


def show(trained):
    run_ids = register(trained)["run_id"]
    groups = [Group(run.task, {run_ids[run.identity]: run}) for run in trained]
    show_in_report(groups, {}, "embedded")


def stored_run(run):
    return next(stored for stored in runs_in_store() if stored.data.tags.get("vitlab.identity") == run.identity)


def model_uri(run):
    return f"models:/{stored_run(run).data.tags['vitlab.model']}"


@pytest.fixture(scope="module")
def fresh_process(runs, tmp_path_factory):
    """The folder with what a process elsewhere has predicted for the validation images."""
    folder = tmp_path_factory.mktemp("elsewhere")
    np.save(
        folder / "images.npy", np.stack([np.asarray(Image.open(f"pictures/{index}.png")) for index in range(6, 12)])
    )
    environment = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "DVC_ROOT")}
    environment["MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR"] = "false"
    # By the run and by the model's ID.
    stored = stored_run(runs["classification"]).info
    uris = [f"runs:/{stored.run_id}/{stored.run_name}", model_uri(runs["segmentation"])]
    command = [sys.executable, "-c", PREDICT, store_uri(), *uris]
    result = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr
    return folder


def test_masks_are_those_of_the_run(runs, fresh_process):
    rows = pq.read_table(runs["segmentation"].artifacts["predictions"]).to_pylist()
    expected = {row["image_id"]: np.frombuffer(row["mask"], np.uint8).reshape(24, 24) for row in rows}
    masks = np.load(fresh_process / "outputs.npz")["masks"]
    assert len(np.unique(masks)) > 1
    np.testing.assert_array_equal(masks, [expected[str(index)] for index in range(6, 12)])


def test_labels_and_probabilities_are_those_of_the_run(runs, fresh_process):
    rows = pq.read_table(runs["classification"].artifacts["predictions"]).to_pylist()
    outputs = np.load(fresh_process / "outputs.npz")
    assert [row["image_id"] for row in rows] == [str(index) for index in range(6, 12)]
    assert outputs["labels"].tolist() == [row["predicted"] for row in rows]
    expected = np.array([max(row["probabilities"]) for row in rows], np.float32)
    np.testing.assert_array_equal(outputs["probabilities"], expected)


def test_signature_classes_and_metrics_are_those_of_the_run(runs):
    info = get_model_info(model_uri(runs["segmentation"]))
    assert info.signature.inputs.input_types() == [np.dtype(np.uint8)]
    assert info.metadata == {"classes": ["sky", "red", "green"]}
    info = get_model_info(model_uri(runs["classification"]))
    assert info.signature.outputs.input_names() == ["label", "probability"]
    assert info.metadata == {"labels": ["r", "g"]}
    client = MlflowClient(store_uri())
    run = runs["classification"]
    model = client.get_logged_model(model_uri(run).removeprefix("models:/"))
    assert {metric.key: metric.value for metric in model.metrics} == run.metrics
    run_id = stored_run(run).info.run_id
    assert all(len(client.get_metric_history(run_id, key)) == 1 for key in run.metrics)


def test_all_that_a_model_imports_is_required(runs, fresh_process):
    """`mlflow models serve` installs the requirements only."""
    client = MlflowClient(store_uri())
    model_id = model_uri(runs["segmentation"]).removeprefix("models:/")
    folder = Path(client.get_logged_model(model_id).artifact_location.removeprefix("file://"))
    required = {Requirement(line).name for line in (folder / "requirements.txt").read_text().splitlines()}
    distributions = packages_distributions()
    imported = set()
    for module in json.loads((fresh_process / "modules.json").read_text()):
        path = folder / "code" / f"{module.replace('.', '/')}.py"
        if path.is_file():
            imported |= imported_packages(path)
    assert {"torch", "timm", "PIL"} <= imported
    # pydantic brings pydantic_core along; accelerate is imported where several processes train together.
    for package in imported - sys.stdlib_module_names - {"stages", "pydantic_core", "accelerate"}:
        assert required & set(distributions[package]), package


def imported_packages(path):
    """Top-level packages in the import statements of a file."""
    packages = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            packages |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            packages.add(node.module.split(".")[0])
    return packages


def test_a_second_report_logs_no_second_model(runs):
    models = [stored_run(run).data.tags["vitlab.model"] for run in runs.values()]
    show(list(runs.values()))
    assert [stored_run(run).data.tags["vitlab.model"] for run in runs.values()] == models


@pytest.mark.parametrize("name", ["weights", "backbone"])
def test_a_run_whose_files_are_gone_has_no_model_and_one_line(runs, name, capsys):
    """The weights were not pulled from DVC's remote, or the backbone is another one by now."""
    run = runs["segmentation"]
    client = MlflowClient(store_uri())
    client.delete_tag(stored_run(run).info.run_id, "vitlab.model")
    path = Path(run.artifacts["weights"] if name == "weights" else BACKBONE)
    path.rename("away")
    try:
        show([run])
    finally:
        Path("away").rename(path)
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("MLflow: no model of linear-seed1: ")
    assert str(path) in line
    assert "vitlab.model" not in stored_run(run).data.tags
    assert stored_run(run).data.tags["report"] == "segmentation"
    show([run])
    assert "vitlab.model" in stored_run(run).data.tags
