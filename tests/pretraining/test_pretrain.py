"""The ViT's pretraining resumes where it was interrupted, and ends in the same weights."""

import json

import numpy as np
import pytest
import torch
from conftest import interrupt_at_first_save
from ruamel.yaml import YAML
from torch.nn import functional as F

from stages.core.stage import InputError
from stages.data.scenes.scene import CLASSES, Scene, SceneObject
from stages.models import vit
from stages.params.pretrain import Pretrain
from stages.pretraining import pretrain as stage
from stages.pretraining import training
from stages.pretraining.object_heads import ABSENT

RECIPE = Pretrain(
    seed=1,
    images=40,
    batch_size=8,
    lr=0.001,
    muon_lr=0.01,
    weight_decay=0.01,
    warmup=2,
    object_weight=0.3,
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


def test_labels_name_classes_colors_and_places():
    image, *labels = stage.load_example(1, "pretrain_val", 1, stage.Style())
    present, places, colors = labels
    assert image.dtype == torch.uint8
    assert image.shape == (3, 80, 80)
    assert present.shape == (28,)
    assert 1 <= present[:20].sum() <= 3
    in_scene = present[:20] == 1
    assert torch.equal(places != ABSENT, in_scene)
    assert torch.equal(colors != ABSENT, in_scene)
    assert {int(color) for color in colors[in_scene]} == set(present[20:].nonzero().flatten().tolist())


def test_places_are_those_of_the_captions_and_follow_a_flip(monkeypatch):
    star = SceneObject("star", "red", "large", 20.0, 70.0, 10.0, 0.0)  # at the top right
    zero = SceneObject("zero", "blue", "large", 20.0, 40.0, 40.0, 0.0)  # in the middle
    pixels = np.arange(80 * 80 * 3, dtype=np.uint8).reshape(80, 80, 3)
    scene = Scene(pixels, np.zeros((80, 80), np.uint8), (star, zero), "texture")
    monkeypatch.setattr(stage, "draw_scene", lambda rng, writers, style: scene)
    examples = [stage.load_example(index, "pretrain", 1, stage.Style()) for index in range(20)]
    flipped = {
        index for index, (image, *_) in enumerate(examples) if (image.numpy()[0, :, 0] == pixels[:, 79, 0]).all()
    }
    assert 0 < len(flipped) < 20
    for index, (_, _, places, colors) in enumerate(examples):
        assert places[CLASSES.index("star") - 1] == (0 if index in flipped else 2)
        assert places[0] == 4
        assert (places != ABSENT).sum() == 2
        assert colors[CLASSES.index("star") - 1] == 0
        assert colors[0] == 4


def test_sine_positions_make_neighbors_the_most_similar_patches():
    torch.manual_seed(0)
    model = stage.Pretrainer(vit.Architecture(outputs=28), RECIPE.model_copy(update={"position_scale": 10.0}))
    positions = F.normalize(model.vit.pos_embed[0, 1:], dim=-1)
    similarity = (positions @ positions.T).fill_diagonal_(-1)
    nearest = similarity.argmax(1)
    rows, columns = torch.arange(100) // 10, torch.arange(100) % 10
    assert ((rows - rows[nearest]).abs() + (columns - columns[nearest]).abs() == 1).all()
