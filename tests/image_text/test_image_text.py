"""Views and captions through BLIP's towers, once, and the tables they are kept in."""

from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import untrained_blip
from PIL import Image
from transformers import BlipForConditionalGeneration, BlipForImageTextRetrieval, BlipImageProcessorPil

from stages.core.stage import InputError
from stages.data.manifest import Manifest, Row
from stages.features.shards import Shards
from stages.features.vectors import Vectors, read_vectors, write_vectors
from stages.image_text import encode
from stages.image_text.pixels import BlipRandAugment, train_view, val_view
from stages.image_text.reference_caption import reference_index
from stages.image_text.retrieval_vectors import encode_captions, encode_views
from stages.image_text.towers import Towers, load_towers
from stages.image_text.vocabulary import unknown_words
from stages.models import blip, vit
from stages.models.checkpoints.record import Checkpoint
from stages.params.compute import Compute

ALONE = Compute(precision="float32", compile=False, workers=0)
CAPTIONS = ("a red circle", "a blue star above a pink ring", "a one")


@pytest.fixture(scope="module")
def towers(tmp_path_factory):
    folder = tmp_path_factory.mktemp("blip")
    untrained_blip(folder)
    return load_towers(Checkpoint("untrained", str(folder), "0"), ALONE)


@pytest.fixture
def rows(tmp_path):
    rng, made = np.random.default_rng(0), []
    for index, size in enumerate([(80, 80), (40, 90), (120, 64)]):
        path = tmp_path / f"{index}.png"
        Image.fromarray(rng.integers(0, 256, (*size, 3), dtype=np.uint8)).save(path)
        made.append(Row(f"id{index}", "train", str(path), None, CAPTIONS[index:], height=size[0], width=size[1]))
    return tuple(made)


def test_a_view_hangs_on_its_seed_alone(rows):
    image = Image.open(rows[0].image)
    before = torch.random.get_rng_state()
    one = train_view(image, 80, 5)
    assert torch.equal(torch.random.get_rng_state(), before)  # nobody else's stream is touched
    torch.rand(3)
    assert torch.equal(one, train_view(image, 80, 5))
    assert not torch.equal(one, train_view(image, 80, 6))
    assert one.shape == (3, 80, 80)
    assert one.dtype == torch.uint8


def test_validation_views_hold_the_whole_image_whatever_its_shape():
    image = Image.new("RGB", (120, 40))
    image.paste((255, 255, 255), (60, 0, 120, 40))
    view = val_view(image, 80).float()
    assert view.shape == (3, 80, 80)
    assert view[:, :, :36].max() < 5
    assert view[:, :, 44:].min() > 250


def test_only_the_protocols_operations_are_drawn(monkeypatch):
    seen = Counter()
    apply = BlipRandAugment._apply_image_or_video_transform

    def noted(self, image, name, magnitude, **settings):
        seen[name, round(abs(magnitude), 4)] += 1
        return apply(self, image, name, magnitude, **settings)

    monkeypatch.setattr(BlipRandAugment, "_apply_image_or_video_transform", noted)
    augment = BlipRandAugment()
    for _ in range(200):
        augment(Image.new("RGB", (384, 384)))
    assert set(seen) == {
        ("Identity", 0),
        ("AutoContrast", 0),
        ("Equalize", 0),
        ("Brightness", 0),
        ("Sharpness", 0),
        ("ShearX", 0.15),
        ("ShearY", 0.15),
        ("TranslateX", 5),
        ("TranslateY", 5),
        ("Rotate", 15),
    }
    assert seen.total() == 400


def test_what_is_encoded_is_what_transformers_compares(towers, rows):
    """The cached class tokens, projected, give the similarities of transformers' own retrieval class."""
    texts = list(CAPTIONS)
    pixels = torch.stack([val_view(Image.open(row.image), 80) for row in rows])
    mean, std = (torch.tensor(one).view(3, 1, 1) for one in (towers.pixels.mean, towers.pixels.std))
    read = towers.tokenizer(texts, padding=True, return_tensors="pt")
    normalized = (pixels / 255 - mean) / std
    with torch.no_grad():
        whole = towers.model(read.input_ids, normalized, use_itm_head=False, attention_mask=read.attention_mask)
        images = towers.model.vision_proj(towers.image_states(pixels)[:, 0])
        told = towers.model.text_proj(towers.text_states(texts))
    ours = torch.nn.functional.normalize(images, dim=-1) @ torch.nn.functional.normalize(told, dim=-1).T
    assert torch.allclose(ours, whole.itm_score, atol=1e-5)


def test_padding_changes_no_captions_state(towers):
    alone = torch.cat([towers.text_states([text]) for text in CAPTIONS])
    assert torch.allclose(towers.text_states(list(CAPTIONS)), alone, atol=1e-5)


def test_every_caption_and_every_view_is_encoded_once(towers, rows, monkeypatch, tmp_path):
    seen = []
    once = Towers.image_states
    monkeypatch.setattr(Towers, "image_states", lambda self, pixels: seen.append(len(pixels)) or once(self, pixels))
    shards = Shards(Path("train"), 6, {}, waiting=tmp_path / "waiting")
    train = encode_views(towers, rows * 2, [0, 0, 0, 1, 1, 1], list(range(6)), shards)
    assert sum(seen) == 6
    assert train.image_ids == ["id0", "id1", "id2"] * 2
    assert train.indices == [0, 0, 0, 1, 1, 1]
    told = encode_captions(towers, rows, {})
    assert [(one, index) for one, index in zip(told.image_ids, told.indices, strict=True)] == [
        ("id0", 0),
        ("id0", 1),
        ("id0", 2),
        ("id1", 0),
        ("id1", 1),
        ("id2", 0),
    ]
    assert torch.allclose(told.values[5].float(), towers.text_states(["a one"])[0], atol=2e-3)


def test_unknown_words_are_named_with_their_share(towers):
    share, words = unknown_words(towers.tokenizer, ["a red dog.", "a dog. on a Star, cat"])
    assert share == pytest.approx(3 / 9)
    assert words == ["dog.", "cat"]


def test_images_without_captions_are_named(rows):
    bare = replace(rows[1], captions=())
    with pytest.raises(InputError, match=r"here/captions.json: 1 image has no caption: id1"):
        encode.check_captioned(Manifest((rows[0], bare), "here", ("a", "b")))


def test_the_caption_that_stands_for_an_image_is_its_own_affair(rows):
    drawn = [reference_index(row, 7) for row in rows]
    assert drawn == [reference_index(row, 7) for row in reversed(rows)][::-1]
    many = [reference_index(replace(rows[0], image_id=f"x{index}"), 7) for index in range(300)]
    assert set(many) == {0, 1, 2}
    assert reference_index(rows[2], 7) == 0


def test_vectors_round_trip_and_refuse_what_was_made_otherwise(tmp_path):
    made = Vectors(["a", "b"], [0, 3], torch.randn(2, 6), {"backbone": "x", "manifest": "m"})
    write_vectors(tmp_path / "v.parquet", made)
    again = read_vectors(tmp_path / "v.parquet", backbone="x")
    assert (again.image_ids, again.indices, again.metadata["manifest"]) == (["a", "b"], [0, 3], "m")
    assert torch.equal(again.values, made.values.half())
    with pytest.raises(InputError, match=r"v.parquet: backbone is 'x', expected 'y'"):
        read_vectors(tmp_path / "v.parquet", backbone="y")


def test_both_classes_share_one_image_tower(towers):
    source = towers.tokenizer.name_or_path
    other = blip.load(BlipForImageTextRetrieval, source)
    pixels = torch.zeros(1, 3, 80, 80, dtype=torch.uint8)
    again = Towers(other, towers.tokenizer, towers.pixels)
    assert torch.equal(again.image_states(pixels), towers.image_states(pixels))


def test_a_blip_that_only_captions_says_why_it_compares_nothing(tmp_path):
    """As the hub's blip-image-captioning-base, which holds no text encoder."""
    tokenizer = blip.word_tokenizer({"red", "one"})
    config = blip.small_config(vit.Architecture(dim=32, depth=1), len(tokenizer), layers=1, projection=16)
    del config.vision_config.stem
    BlipForConditionalGeneration(config).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    BlipImageProcessorPil(image_mean=vit.MEAN, image_std=vit.STD, size={"height": 80, "width": 80}).save_pretrained(
        tmp_path
    )
    towers = load_towers(Checkpoint("hub/captioner@1", str(tmp_path), "0"), ALONE)
    assert towers.lacks.startswith("hub/captioner@1 holds no weights for itm_head, text_encoder")
    assert towers.image_states(torch.zeros(2, 3, 80, 80, dtype=torch.uint8)).shape == (2, 101, 32)
