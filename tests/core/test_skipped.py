"""Outputs of skipped stages are valid, empty files that hold the reason."""

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file

from stages.core.runs import Run, read_run, record_path, write_run
from stages.core.skipped import mark_skipped, skip_reason
from stages.core.stage import InputError
from stages.core.weights_file import save_weights

REASON = "no masks: no ségmentation"
FOLDER = Path("features")
TABLE = Path("predictions/mine.parquet")
WEIGHTS = Path("models/mine.safetensors")
RECORD = record_path("segmentation", "mine")


@pytest.fixture(autouse=True)
def finished_outputs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for path in (FOLDER / "shard", TABLE):
        path.parent.mkdir(parents=True)
    (FOLDER / "shard").write_text("features")
    pq.write_table(pa.table({"image_id": ["a"]}), TABLE)
    save_weights(WEIGHTS, {"weight": torch.zeros(2)}, head={"kind": "linear"})
    write_run(Run("segmentation", "mine", "train_head@mine", {}, {"miou": 1.0}))


@pytest.mark.parametrize("output", [FOLDER, TABLE, WEIGHTS, RECORD, Path("missing.json"), Path("missing")])
def test_finished_and_missing_outputs_have_no_reason(output):
    assert skip_reason(output) is None


def test_skipped_outputs_are_valid_empty_and_hold_the_reason(capsys):
    outputs = (FOLDER, TABLE, WEIGHTS, RECORD)
    mark_skipped(REASON, *outputs)
    assert capsys.readouterr().out == REASON + "\n"
    assert [skip_reason(output) for output in outputs] == [REASON] * 4
    assert [path.name for path in FOLDER.iterdir()] == ["skipped.json"]
    assert pq.read_table(TABLE).shape == (0, 0)
    assert load_file(WEIGHTS) == {}
    assert json.loads(RECORD.read_text()) == {"status": "skipped", "reason": REASON}


def test_reading_a_skipped_run_raises_with_the_reason():
    mark_skipped(REASON, RECORD)
    with pytest.raises(InputError, match=f"mine.json: the run was skipped: {REASON}"):
        read_run("segmentation", "mine")
