"""BLIP's pretraining resumes where it was interrupted, and exports a checkpoint that loads."""

import math
import shutil

import pytest
import torch
from conftest import ROOT, assert_equal_curves, interrupt_at_first_save
from torch.nn import functional as F
from transformers import BlipForConditionalGeneration, BlipForImageTextRetrieval

from stages.data.scenes import web
from stages.models import blip, vit
from stages.params.pretrain_blip import PretrainBlip
from stages.pretraining import pretrain_blip as stage
from stages.pretraining import training
from stages.pretraining.blip_card import METRICS
from stages.pretraining.captioned_scenes import CAPTIONS_PER_SCENE, MAX_LENGTH, MAX_TOKENS, task_caption

RECIPE = PretrainBlip(
    seed=1,
    images=24,
    batch_size=8,
    lr=0.001,
    muon_lr=0.01,
    weight_decay=0.01,
    warmup=2,
    text_layers=1,
    projection=16,
)  # three batches, evaluated after the second and the last


@pytest.fixture
def folder(tmp_path, monkeypatch):
    (tmp_path / stage.TOWER).parent.mkdir(parents=True)
    shutil.copy(ROOT / stage.TOWER, tmp_path / stage.TOWER)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(stage, "HELD_OUT", 20)
    monkeypatch.setattr(training, "EVALUATE_EVERY", 2)
    return tmp_path


def test_a_resumed_run_ends_in_the_weights_of_an_uninterrupted_one_and_exports(folder, monkeypatch):
    model, uninterrupted = stage.pretrain(RECIPE, torch.device("cpu"))
    expected = {name: weight.clone() for name, weight in model.state_dict().items()}
    stage.RESUME.unlink()
    interrupt_at_first_save(monkeypatch, lambda: stage.pretrain(RECIPE, torch.device("cpu")))
    model, state = stage.pretrain(RECIPE, torch.device("cpu"))
    assert [point["images"] for point in state.curve] == [16, 24]
    assert_equal_curves(state.curve, uninterrupted.curve)
    for name, weight in model.state_dict().items():
        assert torch.equal(weight, expected[name]), name

    stage.export(model, RECIPE, state, "a test's CPU")
    source = str(folder / stage.FOLDER)
    retriever = blip.load(BlipForImageTextRetrieval, source)
    decoder = blip.load(BlipForConditionalGeneration, source).text_decoder
    assert torch.equal(retriever.vision_proj.weight, model.retriever.vision_proj.weight)
    assert torch.equal(decoder.cls.predictions.decoder.weight, decoder.bert.embeddings.word_embeddings.weight)
    card = (folder / stage.FOLDER / "README.md").read_text()
    assert "24 generated scenes" in card
    assert "| 16 |" in card
    assert "a test's CPU" in card
    assert (folder / stage.FOLDER / "curve.png").read_bytes()[:4] == b"\x89PNG"


def test_encoder_and_decoder_share_all_but_self_attention(folder):
    model = stage.Pretrainer(vit.read_architecture(stage.TOWER), RECIPE)
    encoder = model.retriever.text_encoder
    decoder = model.captioner.text_decoder.bert
    encoder_layer = encoder.encoder.layer[0]
    decoder_layer = decoder.encoder.layer[0]
    assert encoder_layer.crossattention is decoder_layer.crossattention
    assert encoder_layer.intermediate is decoder_layer.intermediate
    assert encoder_layer.attention is not decoder_layer.attention
    assert encoder.embeddings is decoder.embeddings


def test_foreign_captions_belong_to_another_scene():
    def load_examples(foreign):
        return [stage.load_example(index, "pretrain", 1, web.STYLE, web.web_caption, foreign) for index in range(60)]

    half = load_examples(foreign=0.5)
    own = load_examples(foreign=0.0)
    image, ids = half[3]
    assert image.shape == (3, 80, 80)
    assert ids.shape == (CAPTIONS_PER_SCENE, MAX_TOKENS)
    assert all(torch.equal(half[index][0], own[index][0]) for index in range(60))
    assert 15 < sum(torch.equal(half[index][1], own[index][1]) for index in range(60)) < 45


def test_metrics_are_those_of_greedy_captions(folder, monkeypatch):
    """Captions that are right about everything, and a model that tells no place and no relation."""
    monkeypatch.setattr(stage, "HELD_OUT", 40)
    model = stage.Pretrainer(vit.read_architecture(stage.TOWER), RECIPE).eval()
    held_out = stage.load_held_out(RECIPE, stage.Style(), task_caption)
    texts = stage.TOKENIZER.batch_decode(held_out.ids, skip_special_tokens=True)
    padded = F.pad(held_out.ids, (0, MAX_LENGTH - MAX_TOKENS), value=stage.TOKENIZER.pad_token_id)
    monkeypatch.setattr(stage, "_generate", lambda model, states: padded)
    metrics = stage.evaluate(model, held_out)
    assert list(metrics) == list(METRICS)
    assert metrics["place_right"] == metrics["relation_right"] == 100
    assert 0 < metrics["place_named"] == 2.5 * sum("at the" in text or "in the middle" in text for text in texts) < 100
    monkeypatch.setattr(stage, "_generate", lambda model, states: torch.zeros_like(padded))
    metrics = stage.evaluate(model, held_out)
    assert metrics["class_named"] == metrics["place_named"] == 0
    assert math.isnan(metrics["place_right"])


@pytest.mark.parametrize("caption", [web.web_caption, task_caption])
def test_no_caption_is_longer_than_the_padding(caption):
    for index in range(200):
        _, ids = stage.load_example(index, "pretrain", 2, web.STYLE, caption, 0.0)
        assert ids.shape == (CAPTIONS_PER_SCENE, MAX_TOKENS)
