"""The word maps of a second captioner: when they are drawn, and what is written."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT, small_catr
from PIL import Image
from ruamel.yaml import YAML

from stages.attention import second_captioner as stage
from stages.core.skipped import skip_reason
from stages.data import manifest as manifests
from stages.data.manifest import Manifest, Row
from stages.models.checkpoints.record import Checkpoint, write_checkpoint
from stages.params.experiment import load_experiment

SOURCE = "data/checkpoints/catr_scenes"
ROWS = tuple(Row(f"val_{index}", "val", f"{index}.png", captions=("a star",)) for index in range(3))
MANIFEST = Manifest(ROWS, "scenes", ("background", "star"))


@pytest.fixture
def set_params(tmp_path, monkeypatch):
    """Write the committed params, with these of the embedded profile and of captioning, to an empty project."""
    monkeypatch.chdir(tmp_path)

    def write(catr=SOURCE, also="catr", model="blip"):
        yaml = YAML()
        params = yaml.load(ROOT / "params.yaml")
        params["embedded"]["catr"] = catr
        params["embedded"]["examples"]["captions"] = ["val_0", "val_2"]
        params["attention"]["captions"]["also"] = also
        params["captioning"]["model"] = model
        yaml.dump(params, tmp_path / "params.yaml")
        return load_experiment()

    return write


@pytest.mark.parametrize(
    ("params", "reason"),
    [
        ({}, None),
        ({"also": None}, "attention.captions.also is null"),
        ({"model": "catr"}, "attention.captions.also and captioning.model are both catr"),
        ({"model": "catr", "also": "blip"}, None),
        ({"catr": None}, "embedded.catr is null"),
    ],
)
def test_it_is_skipped_with_a_reason(set_params, params, reason):
    experiment = set_params(**params)
    assert stage.find_skip_reason(experiment, MANIFEST) == (reason and f"no second captioner: {reason}")
    no_captions = replace(MANIFEST, rows=tuple(replace(row, captions=()) for row in ROWS))
    expected = reason or "scenes has no captions"
    assert stage.find_skip_reason(experiment, no_captions) == f"no second captioner: {expected}"


def test_pictures_and_a_record_of_the_examples_are_written(set_params, monkeypatch):
    set_params()
    small_catr(Path(SOURCE))
    write_checkpoint("catr", Checkpoint(SOURCE, SOURCE, "0" * 64))
    for row in ROWS:
        pixels = np.random.default_rng(3).integers(0, 256, (48, 64, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(row.image)
    monkeypatch.setattr(manifests, "read_manifest", lambda: MANIFEST)
    monkeypatch.setattr(manifests, "manifest_hash", lambda: "hash")
    stage.main()
    record = json.loads(Path("reports/runs/second_captioner/catr.json").read_text())
    assert (record["params"]["model"], record["params"]["prompt"]) == ("catr", "a picture of")
    assert record["inputs"]["backbone"] == SOURCE
    assert list(record["details"]["captions"]) == ["val_0", "val_2"]
    for image_id, picture in record["artifacts"].items():
        assert picture == f"reports/pictures/second_captioner/{image_id}.png"
        assert Path(picture).stat().st_size > 5000
    assert len(record["artifacts"]) == record["metrics"]["images"] == 2
    # The same images without a second captioner: nothing of the first run is left.
    set_params(also=None)
    stage.main()
    for folder in ("reports/runs/second_captioner", "reports/pictures/second_captioner"):
        assert skip_reason(Path(folder)) == "no second captioner: attention.captions.also is null"
        assert [path.name for path in Path(folder).iterdir()] == ["skipped.json"]
