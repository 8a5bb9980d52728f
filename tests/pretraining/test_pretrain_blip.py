"""BLIP's pretraining goes on where it was cut off, and ships what loads."""

import shutil

import pytest
import torch
from conftest import ROOT, cut_off_when_kept
from transformers import BlipForConditionalGeneration, BlipForImageTextRetrieval

from stages.data.scenes import captions, web
from stages.models import blip
from stages.params.pretrain_blip import PretrainBlip
from stages.pretraining import pretrain_blip as stage
from stages.pretraining import training as recipe

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
    monkeypatch.setattr(recipe, "EVALUATE_EVERY", 2)
    return tmp_path


def test_a_cut_off_run_ends_in_the_weights_of_an_undisturbed_one_and_ships(folder, monkeypatch):
    model, undisturbed = stage.pretrain(RECIPE, torch.device("cpu"))
    expected = {name: weight.clone() for name, weight in model.state_dict().items()}
    stage.RESUME.unlink()
    cut_off_when_kept(monkeypatch, lambda: stage.pretrain(RECIPE, torch.device("cpu")))
    model, progress = stage.pretrain(RECIPE, torch.device("cpu"))
    assert [point["images"] for point in progress.curve] == [16, 24]
    assert progress.curve == undisturbed.curve
    for name, weight in model.state_dict().items():
        assert torch.equal(weight, expected[name]), name

    stage.ship(model, RECIPE, progress, "a test's CPU")
    source = str(folder / stage.FOLDER)
    retriever = blip.load(BlipForImageTextRetrieval, source)
    captioner = blip.load(BlipForConditionalGeneration, source)
    assert torch.equal(retriever.vision_proj.weight, model.retriever.vision_proj.weight)
    tied = captioner.text_decoder
    assert torch.equal(tied.cls.predictions.decoder.weight, tied.bert.embeddings.word_embeddings.weight)
    card = (folder / stage.FOLDER / "README.md").read_text()
    assert "24 scenes" in card
    assert "| 16 |" in card
    assert "a test's CPU" in card
    assert (folder / stage.FOLDER / "curve.png").read_bytes()[:4] == b"\x89PNG"


def test_encoder_and_decoder_share_all_but_self_attention(folder):
    model = stage.Pretrainer(stage.vit.read_architecture(stage.TOWER), RECIPE)
    encoder, decoder = model.retriever.text_encoder, model.captioner.text_decoder.bert
    ours, theirs = encoder.encoder.layer[0], decoder.encoder.layer[0]
    assert ours.crossattention is theirs.crossattention
    assert ours.intermediate is theirs.intermediate
    assert ours.attention is not theirs.attention
    assert encoder.embeddings is decoder.embeddings


def test_scenes_come_from_the_pretraining_writers_and_some_captions_from_another_scene():
    scenes = stage.CaptionedScenes("pretrain", 1, 0, 60, web.STYLE, web.web_caption, foreign=0.5)
    image, ids, looks = scenes[3]
    assert image.shape == (3, 80, 80)
    assert ids.shape == (stage.TOLD, stage.LENGTH)
    assert looks.shape == (2,)
    own = stage.CaptionedScenes("pretrain", 1, 0, 60, web.STYLE, web.web_caption, foreign=0.0)
    same = sum(torch.equal(scenes[index][1], own[index][1]) for index in range(60))
    assert 15 < same < 45
    assert torch.equal(scenes[3][0], own[3][0])


def test_no_caption_is_longer_than_it_is_padded():
    for tell in (web.web_caption, lambda rng, seen: captions.scene_captions(rng, seen)[0]):
        scenes = stage.CaptionedScenes("pretrain", 2, 0, 200, web.STYLE, tell)
        assert {tuple(ids.shape) for _, ids, _ in (scenes[index] for index in range(200))} == {
            (stage.TOLD, stage.LENGTH)
        }
