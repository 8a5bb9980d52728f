"""CATR's pretraining resumes where it was interrupted, and exports a checkpoint that loads."""

import json
import math

import pytest
import torch
from conftest import assert_equal_curves, interrupt_at_first_save
from PIL import Image
from ruamel.yaml import YAML

from stages.data.scenes import web
from stages.data.scenes.scene import CLASSES, COLORS, Style
from stages.models import catr
from stages.params.pretrain_catr import PretrainCatr
from stages.pretraining import captioned_scenes, training
from stages.pretraining import pretrain_catr as stage

RECIPE = PretrainCatr(
    seed=1,
    images=24,
    batch_size=8,
    lr=0.001,
    muon_lr=0.01,
    weight_decay=0.01,
    warmup=2,
    layers=1,
    presence_weight=1.0,
    object_weight=0.1,
)  # three batches, evaluated after the second and the last


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(stage, "HELD_OUT", 12)
    monkeypatch.setattr(training, "EVALUATE_EVERY", 2)
    return tmp_path


def test_a_resumed_run_ends_in_the_weights_of_an_uninterrupted_one(folder, monkeypatch):
    model, uninterrupted = stage.pretrain(RECIPE, torch.device("cpu"))
    expected = {name: weight.clone() for name, weight in model.state_dict().items()}
    stage.RESUME.unlink()
    interrupt_at_first_save(monkeypatch, lambda: stage.pretrain(RECIPE, torch.device("cpu")))
    model, state = stage.pretrain(RECIPE, torch.device("cpu"))
    assert [point["images"] for point in state.curve] == [16, 24]
    assert_equal_curves(state.curve, uninterrupted.curve)
    for name, weight in model.state_dict().items():
        assert torch.equal(weight, expected[name]), name


def test_the_stage_writes_a_checkpoint_that_loads_and_its_card(folder, monkeypatch):
    trained = []
    pretrain = stage.pretrain
    monkeypatch.setattr(stage, "pretrain", lambda *args: trained.append(pretrain(*args)) or trained[0])
    YAML().dump({"pretrain_catr": json.loads(RECIPE.model_dump_json())}, folder / "params.yaml")
    stage.main()
    ((model, _),) = trained
    loaded = catr.load(folder / stage.FOLDER / catr.WEIGHTS)
    assert loaded.config == model.catr.config == stage.small_config(layers=1)
    image, *_ = stage.load_example(1, "pretrain_val", 1, web.STYLE, web.web_caption, 0.0)
    pixels = catr.normalize(image)[None]
    assert loaded.memory(pixels).shape == (1, 8, 8, 128)
    # Frozen batch norm computes in another order.
    torch.testing.assert_close(loaded.memory(pixels), model.catr.memory(pixels), rtol=1e-3, atol=1e-3)
    tokenizer = catr.load_tokenizer(folder / stage.FOLDER)
    assert tokenizer.get_vocab() == captioned_scenes.TOKENIZER.get_vocab()
    card = (folder / stage.FOLDER / "README.md").read_text()
    assert "24 generated scenes" in card
    assert "| 16 |" in card
    assert "0.25 times the width" in card
    assert (folder / stage.FOLDER / "curve.png").read_bytes()[:4] == b"\x89PNG"
    assert not stage.RESUME.exists()


def test_the_shipped_size_has_at_most_6_mb():
    with torch.device("meta"):
        model = catr.Catr(stage.small_config(layers=2))
    assert 4 * sum(weight.numel() for weight in model.state_dict().values()) < 6e6


def test_an_example_has_the_pixels_of_inference():
    scene, expected_ids = captioned_scenes.draw_example(3, "pretrain", 1, web.STYLE, web.web_caption)
    image, ids, present, _, _ = stage.load_example(3, "pretrain", 1, web.STYLE, web.web_caption, 0.0)
    side = stage.LONGER_SIDE
    assert (image.dtype, image.shape) == (torch.uint8, (3, side, side))
    assert torch.equal(catr.normalize(image), catr.preprocess(Image.fromarray(scene.image), side))
    assert torch.equal(ids, expected_ids)
    names = {scene_object.name for scene_object in scene.objects}
    colors = {scene_object.color for scene_object in scene.objects}
    labels = dict(zip((*CLASSES[1:], *COLORS), present.tolist(), strict=True))
    assert {name for name, label in labels.items() if label} == names | colors


def test_foreign_captions_belong_to_another_scene():
    def draw_examples(foreign):
        return [
            captioned_scenes.draw_example(index, "pretrain", 1, web.STYLE, web.web_caption, foreign)
            for index in range(60)
        ]

    half = draw_examples(foreign=0.5)
    own = draw_examples(foreign=0.0)
    assert all(half[index][0].objects == own[index][0].objects for index in range(60))
    assert 15 < sum(torch.equal(half[index][1], own[index][1]) for index in range(60)) < 45


@pytest.mark.parametrize("caption", [web.web_caption, captioned_scenes.task_caption])
def test_no_caption_is_longer_than_the_padding(caption):
    for index in range(200):
        _, ids = captioned_scenes.draw_example(index, "pretrain", 2, web.STYLE, caption)
        assert ids.shape == (captioned_scenes.CAPTIONS_PER_SCENE, captioned_scenes.MAX_TOKENS)


def test_greedy_captions_are_those_of_whole_texts(monkeypatch):
    """Each token is the most probable one after the text before it; no end before `MIN_LENGTH`, padding after it."""
    normalize = catr.normalize
    monkeypatch.setattr(catr, "normalize", lambda pixels: normalize(pixels).double())
    torch.manual_seed(4)
    model = catr.Catr(stage.small_config(layers=1)).double().eval()
    images = torch.randint(256, (3, 3, 64, 64), dtype=torch.uint8)
    with torch.no_grad():
        model.mlp.layers[-1].bias[model.end] += 0.2  # so that captions end
        ids = stage.generate(model, images).clone()  # autograd refuses tensors of inference mode
        memory = model.memory(catr.normalize(images))
    assert ids.shape == (3, captioned_scenes.MAX_LENGTH)
    texts = captioned_scenes.TOKENIZER.batch_decode(ids, skip_special_tokens=True)
    assert all(text.startswith(captioned_scenes.PROMPT) for text in texts)
    for row in range(3):
        sequence = ids[row].tolist()
        length = sequence.index(model.end) + 1 if model.end in sequence else len(sequence)
        assert length > captioned_scenes.MIN_LENGTH
        assert set(sequence[length:]) <= {model.pad}
        for position in range(4, length):
            logits = model.logits(ids[row : row + 1, :position], memory[row : row + 1])
            if position < captioned_scenes.MIN_LENGTH:
                logits[:, model.end] = -torch.inf
            assert sequence[position] == logits.argmax()


def test_metrics_of_captions():
    scene, _ = captioned_scenes.draw_example(0, "pretrain", 1, Style(), captioned_scenes.task_caption)
    largest = max(scene.objects, key=lambda scene_object: scene_object.radius)
    texts = [f"a picture of a {largest.color} {largest.name}", "a picture of a photo"]
    ids = captioned_scenes.TOKENIZER(texts, padding=True, return_tensors="pt").input_ids
    metrics = captioned_scenes.compute_metrics(ids, [scene.objects, scene.objects], 80)
    assert metrics.keys() == captioned_scenes.METRICS.keys()
    assert (metrics["class_named"], metrics["color_named"]) == (50, 50)
    assert metrics["place_named"] == 0
    assert math.isnan(metrics["place_right"])
