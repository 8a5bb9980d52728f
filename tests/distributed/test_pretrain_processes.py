"""Pretraining on two processes computes what one computes: losses, batch norm, metrics, weights, also when resumed."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import ROOT
from torch import Tensor

from stages.core import processes, train_state
from stages.core.stage import InputError
from stages.models import catr, vit
from stages.params.pretrain import Pretrain
from stages.params.pretrain_blip import PretrainBlip
from stages.params.pretrain_catr import PretrainCatr
from stages.pretraining import captioned_scenes, pretrain, pretrain_blip, pretrain_catr, training
from stages.pretraining.object_heads import ABSENT, NAMES, Labels

# Three batches of 11 scenes, evaluated after the second and the last. Of two processes, one has six scenes of a batch
# and four of the eight for matching, the other has five and four.
RECIPE = Pretrain(
    seed=1,
    images=33,
    batch_size=11,
    lr=0.001,
    muon_lr=0.01,
    weight_decay=0.01,
    warmup=2,
    object_weight=0.3,
    position_scale=0.5,
)
BLIP_RECIPE = PretrainBlip(
    **RECIPE.model_dump(exclude={"object_weight", "position_scale"}), text_layers=1, projection=16
)
CATR_RECIPE = PretrainCatr(**RECIPE.model_dump(exclude={"position_scale"}), layers=1, presence_weight=1.0)
# float64 rounds to 1.1e-16, and a step adds up some thousand terms. AdamW and Muon divide by norms of gradients, and
# gradients near 0 have a larger relative error. Statistics of each share alone would change the loss by 1e-2.
TOLERANCE = 1e-9

Result = tuple[dict[str, Tensor], list[dict]]


def train() -> dict[str, Result]:
    """All pretrainings, shrunk and in float64: weights and curve by name."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training, "EVALUATE_EVERY", 2)
        patch.setattr(pretrain, "HELD_OUT", 41)
        patch.setattr(pretrain_blip, "HELD_OUT", 9)
        patch.setattr(pretrain_catr, "HELD_OUT", 9)
        patch.setattr(pretrain_catr, "LONGER_SIDE", 64)
        normalize = vit.normalize
        patch.setattr(vit, "normalize", lambda images: normalize(images).double())
        normalize_catr = catr.normalize
        patch.setattr(catr, "normalize", lambda pixels: normalize_catr(pixels).double())
        torch.set_default_dtype(torch.float64)
        try:
            vit_model, _, vit_state = pretrain.pretrain(RECIPE, torch.device("cpu"))
            blip_model, blip_state = pretrain_blip.pretrain(BLIP_RECIPE, torch.device("cpu"))
            catr_model, catr_state = pretrain_catr.pretrain(CATR_RECIPE, torch.device("cpu"))
        finally:
            torch.set_default_dtype(torch.float32)
    return {
        "pretrain": (vit_model.state_dict(), vit_state.curve),
        "pretrain_blip": (blip_model.state_dict(), blip_state.curve),
        "pretrain_catr": (catr_model.state_dict(), catr_state.curve),
    }


TRAIN = """
import torch
from stages.core import processes
from test_pretrain_processes import train

with processes.training_stage("pretrain"):
    results = train()
    torch.save(results, f"results-{processes.rank()}.pt")
"""


def assert_equal_results(actual: Result, expected: Result) -> None:
    weights, curve = actual
    expected_weights, expected_curve = expected
    assert [point.keys() for point in curve] == [point.keys() for point in expected_curve]
    for point, expected_point in zip(curve, expected_curve, strict=True):
        assert point == pytest.approx(expected_point, rel=TOLERANCE, nan_ok=True)
    assert weights.keys() == expected_weights.keys()
    for name, weight in weights.items():
        torch.testing.assert_close(weight, expected_weights[name], rtol=TOLERANCE, atol=TOLERANCE, msg=name)


def test_two_processes_compute_what_one_computes(tmp_path, monkeypatch):
    """The ViT and CATR from the beginning, and BLIP from the state of one process after two of three batches."""
    monkeypatch.chdir(tmp_path)
    pretrain_blip.TOWER.parent.mkdir(parents=True)
    shutil.copy(ROOT / pretrain_blip.TOWER, pretrain_blip.TOWER)
    save_state = train_state.save_state

    def save_and_keep_second(path, key, model, optimizers, state):
        save_state(path, key, model, optimizers, state)
        if state.step == 2:
            shutil.copy(path, f"{path}.2")

    monkeypatch.setattr(train_state, "save_state", save_and_keep_second)
    expected = train()
    pretrain.RESUME.unlink()
    pretrain_catr.RESUME.unlink()
    Path(f"{pretrain_blip.RESUME}.2").replace(pretrain_blip.RESUME)

    Path("train.py").write_text(TRAIN)
    result = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "train.py"],
        env={**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}:{Path(__file__).parent}", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert result.returncode == 0, result.stderr
    main, other = (torch.load(f"results-{rank}.pt", weights_only=True) for rank in range(2))
    for name in ("pretrain", "pretrain_blip", "pretrain_catr"):
        assert_equal_results(main[name], expected[name])
        assert_equal_results(other[name], main[name])
        for key, weight in main[name][0].items():
            assert torch.equal(weight, other[name][0][key]), key
    assert [point["images"] for point in main["pretrain_blip"][1]] == [22, 33]
    assert "| 2/3 " in result.stderr  # resumed
    assert "| 0/3 " in result.stderr  # not resumed
    for seed_dependent in ("loss", "mAP"):
        assert len({point[seed_dependent] for point in expected["pretrain"][1]}) == 2


def test_no_model_draws_random_numbers_in_training():
    """A draw of dropout or of stochastic depth would depend on the number of processes."""
    model = pretrain.Pretrainer(vit.Architecture(outputs=len(NAMES)), RECIPE).train()
    architecture = vit.Architecture(side=24, dim=12, depth=1, heads=3, stem=(4, 4, 4, 8))
    blip_model = pretrain_blip.Pretrainer(architecture, BLIP_RECIPE).train()
    catr_model = pretrain_catr.Pretrainer(CATR_RECIPE).train()
    images = torch.randint(256, (4, 3, 24, 24), dtype=torch.uint8)
    objects = torch.full((4, 20), ABSENT)
    objects[:, 0] = 0
    labels = Labels(torch.zeros(4, len(NAMES)), objects, objects)
    ids = torch.randint(6, len(captioned_scenes.TOKENIZER), (4, 2, captioned_scenes.MAX_TOKENS))
    vit_images = torch.randint(256, (4, 3, 80, 80), dtype=torch.uint8)
    state = torch.get_rng_state()
    model.loss(vit_images, labels, 4).backward()
    blip_model.loss(images, ids, 4).backward()
    catr_model.loss(images, ids, labels, 4).backward()
    assert torch.equal(torch.get_rng_state(), state)


def test_more_processes_than_scenes_in_a_batch_are_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(processes, "count", lambda: 12)
    with pytest.raises(InputError, match=r"pretrain.batch_size = 11: smaller than 12, the number of processes"):
        training.fit(RECIPE, "pretrain", torch.nn.Linear(1, 1), (), None, None, None, {}, Path("state.pt"))
