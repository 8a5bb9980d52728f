"""The section that compares backbones: differences from the profile's own, costs, and what was not compared."""

import numpy as np
import pandas as pd
import pytest
from conftest import ROOT

from stages.core.runs import Run, record_path
from stages.core.skipped import mark_skipped
from stages.data.manifest import Manifest
from stages.params.backbones import ComparedBackbone
from stages.params.experiment import load_experiment
from stages.report import backbones
from stages.report.results import Result
from stages.report.section import Inputs
from stages.report.significance import Metric

DETAILS = {
    "backbone": {"parameters": 21_665_664, "flops": 8_500_000_000, "tokens": 256},
    "feature_bytes": 4_610_000_000,
}
MANIFESTS = {"manifest": Manifest((), "voc", ()), "labeled": Manifest((), "pets", ())}


def build_result(name, miou, dim=384, layers="last", **params):
    """A result whose bootstrap draws are two points around its mIoU."""
    inputs = {"backbone": "vit_small_patch16_224.dino@abc", "layers": layers, "dim": dim}
    task = "backbones" if params else "segmentation"
    metrics = {"miou": miou, "miou_low": miou - 1, "miou_high": miou + 1}
    run = Run(task, name, "s", params, metrics, inputs=inputs, details=DETAILS, seed=1)
    return Result((run,), pd.DataFrame([metrics]), (None,))


def draw_run(run):
    return run.metrics["miou"] + np.array([-1.0, 1.0])


@pytest.fixture
def inputs():
    experiment = load_experiment(ROOT / "params.yaml")
    compared = {"tower": ComparedBackbone(source="blip")}
    experiment = experiment.model_copy(update={"backbones": compared})
    return lambda **fields: Inputs(**{"results": {}, "skipped": {}, "experiment": experiment, **fields}, **MANIFESTS)


def test_every_backbone_is_compared_with_the_profiles_own_under_the_same_head():
    metric = Metric("miou", "mIoU", draw_run, seed=1)
    own = [build_result("linear", 50.0), build_result("transformer", 60.0)]
    random = {"backbone": "untrained", "head": "linear", "random": True}
    several = {"backbone": "mine", "head": "transformer", "random": False}
    compared = [
        build_result("untrained-linear", 20.0, **random),
        build_result("mine-transformer", 61.5, 1536, "3, 7, 11", **several),
    ]
    rows = backbones.build_table(own, compared, metric).frame.to_dict("records")
    assert [row["Name"] for row in rows] == ["the profile's own", "untrained", "the profile's own", "mine"]
    assert [row["Head"] for row in rows] == ["linear", "linear", "transformer", "transformer"]
    assert [row["mIoU"] for row in rows] == ["50.00", "20.00", "60.00", "61.50"]
    # The draws of both rows are of the same samples: their difference does not vary.
    assert [row["Minus the profile's own"] for row in rows] == [
        "-",
        "-30.00 (-30.00 to -30.00)",
        "-",
        "+1.50 (+1.50 to +1.50)",
    ]
    assert rows[1]["Backbone"] == "vit_small_patch16_224.dino, random weights"
    assert rows[3]["Layers"] == "blocks 3, 7, 11"
    costs = backbones.build_cost_table(own[0], compared).frame.to_dict("records")
    assert [row["Name"] for row in costs] == ["the profile's own", "untrained", "mine"]
    assert (costs[0]["Parameters (M)"], costs[0]["GFLOPs"], costs[0]["Tokens"]) == ("21.67", "8.50", "256")
    assert [row["Width"] for row in costs] == ["384", "384", "1536"]
    assert costs[0]["Cache (GB)"] == "4.610"


def test_what_was_not_compared_is_named_with_the_reason(inputs, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = backbones.backbone_runs(inputs().experiment)
    assert names == [("tower-linear", 1)]
    assert backbones.skipped_backbones(names) == {}
    mark_skipped("paper has no captions", record_path("backbones", "tower-linear-seed1"))
    skipped = backbones.skipped_backbones(names)
    text = backbones.section(inputs(skipped_runs=skipped), {}).text
    assert "Not compared: `tower-linear` (paper has no captions)." in text


def test_nothing_to_compare_is_not_mentioned(inputs):
    assert backbones.section(inputs(), {}).text == ""
    without_masks = inputs(skipped={"segmentation": "no masks"}, skipped_runs={"tower-linear": "no masks"})
    assert backbones.section(without_masks, {}).text == ""
