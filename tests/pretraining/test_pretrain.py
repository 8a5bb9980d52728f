"""The ViT's pretraining resumes where it was interrupted, and ends in the same weights."""

import json

import pytest
import torch
from conftest import interrupt_at_first_save
from ruamel.yaml import YAML

from stages.core.stage import InputError
from stages.models import vit
from stages.params.pretrain import Pretrain
from stages.pretraining import pretrain as stage
from stages.pretraining import training

RECIPE = Pretrain(
    seed=1,
    images=40,
    batch_size=8,
    lr=0.001,
    muon_lr=0.01,
    weight_decay=0.01,
    warmup=2,
    place_weight=0.3,
    position_scale=0.5,
)  # five batches, evaluated after the second, the fourth and the last


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(stage, "HELD_OUT", 60)
    monkeypatch.setattr(training, "EVALUATE_EVERY", 2)
    return tmp_path


def test_a_resumed_run_ends_in_the_weights_of_an_uninterrupted_one(folder, monkeypatch):
    model, _, uninterrupted = stage.pretrain(RECIPE, torch.device("cpu"))
    expected = {name: weight.clone() for name, weight in model.state_dict().items()}
    stage.RESUME.unlink()
    interrupt_at_first_save(monkeypatch, lambda: stage.pretrain(RECIPE, torch.device("cpu")))
    model, _, state = stage.pretrain(RECIPE, torch.device("cpu"))
    assert [point["images"] for point in state.curve] == [16, 32, 40]
    assert state.curve == uninterrupted.curve
    for name, weight in model.state_dict().items():
        assert torch.equal(weight, expected[name]), name


def test_another_recipe_does_not_resume(folder):
    stage.pretrain(RECIPE, torch.device("cpu"))
    other = RECIPE.model_copy(update={"lr": 0.002, "images": 16})
    _, _, state = stage.pretrain(other, torch.device("cpu"))
    assert [point["images"] for point in state.curve] == [16]


def test_the_stage_writes_a_checkpoint_that_loads_and_its_card(folder):
    YAML().dump({"pretrain": json.loads(RECIPE.model_dump_json())}, folder / "params.yaml")
    stage.main()
    backbone = vit.load(str(folder / stage.FOLDER / "model.safetensors"))
    assert backbone(torch.zeros(1, 3, 80, 80, dtype=torch.uint8)).patches.shape == (1, 10, 10, 128)
    card = (folder / stage.FOLDER / "README.md").read_text()
    assert "40 generated scenes" in card
    assert "| crescent |" in card
    assert (folder / stage.FOLDER / "curve.png").read_bytes()[:4] == b"\x89PNG"
    assert not stage.RESUME.exists()


def test_a_missing_section_is_named_and_others_are_not_read(folder):
    (folder / "params.yaml").write_text("segmentation: {lr: wrong}\n")
    with pytest.raises(InputError, match="no section 'pretrain'"):
        stage.main()


def test_presence_labels_classes_and_colors():
    image, present = stage.load_example(1, "pretrain_val", 1, stage.Style())
    assert image.dtype == torch.uint8
    assert image.shape == (3, 80, 80)
    assert present.shape == (28,)
    assert 1 <= present[:20].sum() <= 3
    assert 1 <= present[20:].sum() <= 3
