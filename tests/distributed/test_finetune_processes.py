"""Fine-tuning on two processes computes what one computes: started by `torchrun`, failing, and resumed."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from conftest import ROOT
from PIL import Image
from ruamel.yaml import YAML
from safetensors.torch import load_file

from stages.classification import finetune
from stages.core.runs import read_run
from stages.data import manifest as manifests
from stages.data.manifest import LABELED, Manifest, Row
from stages.models import vit
from stages.models.checkpoints.record import Checkpoint, write_checkpoint

SMALL = vit.Architecture(side=24, dim=12, depth=2, heads=3, stem=(4, 4, 4, 8), outputs=28)
LABELS = ("blue", "green", "red")
IMAGES = 26  # 19 to train, 7 to validate: odd numbers
COMMAND = ("-m", "stages.classification.finetune", "--setting", "mine", "--seed", "1")
STATE = Path("data/resume/finetune/mine-seed1/state.pt")
OUTPUTS = ("data/models", "data/predictions", "reports", "data/resume")

# As `python -m stages.classification.finetune`, but a training image is missing after the first saved state.
FAILING = """
import runpy
import sys
from pathlib import Path

from stages.core import train_state

save_state = train_state.save_state


def save_and_remove_image(*args):
    save_state(*args)
    Path("pictures/20.png").unlink(missing_ok=True)


train_state.save_state = save_and_remove_image
sys.argv[1:] = ["--setting", "mine", "--seed", "1"]
runpy.run_module("stages.classification.finetune", run_name="__main__")
"""


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A folder with a small untrained ViT, labeled images, and one setting in float64 with accumulated gradients."""
    monkeypatch.chdir(tmp_path)
    Path("pictures").mkdir()
    rng = np.random.default_rng(0)
    rows = []
    for index in range(IMAGES):
        pixels = rng.integers(0, 90, (26, 30, 3))
        pixels[..., index % 3] += 60
        path = Path("pictures") / f"{index}.png"
        Image.fromarray(pixels.astype(np.uint8)).save(path)
        split = "val" if index < 7 else "train"
        row = Row(path.stem, split, str(path), label=index % 3, height=26, width=30, content=str(index))
        rows.append(row)
    manifests.write_manifest(Manifest(tuple(rows), "pictures", ("a", "b"), LABELS), LABELED)
    torch.manual_seed(0)
    vit.save(Path("vit.safetensors"), vit.build(SMALL), SMALL)
    write_checkpoint("classifier", Checkpoint("vit.safetensors", "vit.safetensors", "0"))
    yaml = YAML()
    params = yaml.load(ROOT / "params.yaml")
    params["profile"] = "embedded"
    params["embedded"]["classifier"] |= {"backbone": "vit.safetensors", "float64": True}
    params["compute"] |= {"live": False, "workers": 0}
    # Steps of 6, 6, 6 and 1 images, from batches of at most 3: the second process has no image in the last step.
    setting = {"lr": 1e-3, "augment": True, "size": 24, "batch_size": 3, "accumulate": 2, "epochs": 3}
    params["attention"]["class_token"]["setting"] = "mine"
    params["classification"] |= {"seeds": [1], "settings": {"mine": setting}}
    yaml.dump(params, Path("params.yaml"))
    return tmp_path


def start(*command: str) -> subprocess.CompletedProcess:
    """Run a Python command in two processes, under `torchrun`."""
    return subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", *command],
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=240,
    )


def test_two_processes_compute_what_one_computes_also_after_an_error(project):
    finetune.main("mine", 1)
    expected = read_run("classification", "mine-seed1")
    weights = load_file("data/models/classification/mine-seed1/last.safetensors")
    predictions = pq.read_table("data/predictions/classification/mine-seed1.parquet")
    for folder in OUTPUTS:
        Path(folder).rename(f"{folder}-of-one")

    # Each training image is read by one process only. The other one then waits for its gradients.
    image = Path("pictures/20.png").read_bytes()
    Path("failing.py").write_text(FAILING)
    result = start("failing.py")
    assert result.returncode == 1  # of torchrun
    message = "finetune@mine-1: No such file or directory: pictures/20.png"
    assert sum(line.endswith(message) for line in result.stderr.splitlines()) == 1
    assert "exitcode  : 2" in result.stderr
    assert "Connection closed by peer" not in result.stderr
    assert STATE.is_file()
    assert not Path("data/models").exists()

    Path("pictures/20.png").write_bytes(image)
    result = start(*COMMAND)
    assert result.returncode == 0, result.stderr
    # One bar, of one process. It starts after the first of three epochs of 19 images, which is not repeated.
    bars = [line for line in result.stderr.splitlines() if "[00:00<?" in line and "finetune" not in line]
    assert len(bars) == 1
    assert "| 19/57 [" in bars[0]

    run = read_run("classification", "mine-seed1")
    assert (run.params, run.inputs, run.versions) == (expected.params, expected.inputs, expected.versions)
    assert run.metrics["steps"] == 3 * 4
    assert run.details == expected.details
    for row, expected_row in zip(run.history, expected.history, strict=True):
        assert row["accuracy"] == expected_row["accuracy"]
        # Sums in another order, in float64: 1e-16 per step. Adam divides by the root of the squared gradient, which
        # enlarges that where a gradient is near 0.
        assert row["train_loss"] == pytest.approx(expected_row["train_loss"], rel=1e-9)
        # Evaluated in float32, in another batch: 6e-8 per operation.
        assert row["val_loss"] == pytest.approx(expected_row["val_loss"], rel=1e-5)
    assert len({row["train_loss"] for row in run.history}) == 3
    found = pq.read_table("data/predictions/classification/mine-seed1.parquet")
    for column in ("image_id", "label", "predicted"):
        assert found[column] == predictions[column]
    probabilities = [np.array(table["probabilities"].to_pylist()) for table in (found, predictions)]
    np.testing.assert_allclose(*probabilities, rtol=1e-4)
    for name, weight in load_file("data/models/classification/mine-seed1/last.safetensors").items():
        # Saved in float32: 2^-24 of the value, and twice that where float64 values lie on both sides of a midpoint.
        torch.testing.assert_close(weight, weights[name], rtol=2**-22, atol=1e-9, msg=name)
    assert not STATE.exists()
