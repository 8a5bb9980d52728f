"""Views and captions through BLIP's towers, and the tables they are stored in."""

from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import untrained_blip
from PIL import Image
from torch.nn import functional as F
from torchvision.transforms import v2
from transformers import BlipForConditionalGeneration, BlipForImageTextRetrieval, BlipImageProcessorPil

from stages.core.stage import InputError
from stages.data.manifest import Manifest, Row
from stages.features.extraction import extract_shards
from stages.features.shards import Shards
from stages.features.vectors import Vectors, concat_vectors, read_vectors, write_vectors
from stages.image_text import encode
from stages.image_text.pixels import GRAY, BlipRandAugment, train_dataset, train_view, val_dataset, val_view
from stages.image_text.reference_caption import reference_index
from stages.image_text.retrieval_vectors import ViewVectorsJob, encode_captions
from stages.image_text.towers import Towers, load_towers
from stages.image_text.vocabulary import unknown_words
from stages.models import blip, vit
from stages.params.compute import Compute

COMPUTE = Compute(precision="float32", compile=False, workers=0, live=False)
CAPTIONS = ("a red circle", "a blue star above a pink ring", "a one")


@pytest.fixture(scope="module")
def towers(tmp_path_factory):
    folder = tmp_path_factory.mktemp("blip")
    untrained_blip(folder)
    return load_towers(folder, COMPUTE)


@pytest.fixture
def rows(tmp_path):
    rng = np.random.default_rng(0)
    rows = []
    for index, (height, width) in enumerate([(80, 80), (40, 90), (120, 64)]):
        path = tmp_path / f"{index}.png"
        Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8)).save(path)
        rows.append(Row(f"id{index}", "train", str(path), None, CAPTIONS[index:], height=height, width=width))
    return tuple(rows)


def assert_close(result, expected, relative=1e-5):
    """Equal up to `relative` times the largest value; 1e-5 is a hundred times the float32 epsilon 1.2e-7."""
    torch.testing.assert_close(result, expected, rtol=0, atol=relative * expected.abs().max().item())


# Views


def test_a_training_view_depends_on_its_seed_only(rows):
    image = Image.open(rows[0].image)
    random_state = torch.random.get_rng_state()
    view = train_view(image, 80, 5, 0.5)
    assert torch.equal(torch.random.get_rng_state(), random_state)  # the global state is untouched
    torch.rand(3)
    assert torch.equal(view, train_view(image, 80, 5, 0.5))
    assert not torch.equal(view, train_view(image, 80, 6, 0.5))
    assert view.shape == (3, 80, 80)
    assert view.dtype == torch.uint8


def test_a_validation_view_contains_the_whole_image_whatever_its_shape():
    image = Image.new("RGB", (120, 40))
    image.paste((255, 255, 255), (60, 0, 120, 40))
    view = val_view(image, 80).float()
    assert view.shape == (3, 80, 80)
    assert view[:, :, :36].max() < 5
    assert view[:, :, 44:].min() > 250


def test_datasets_load_training_views_with_seeds_and_validation_views_without(rows):
    image = Image.open(rows[1].image)
    index, pixels = train_dataset(rows, 80, [7, 8, 9], 0.5)[1]
    assert index == 1
    assert torch.equal(pixels, train_view(image, 80, 8, 0.5))
    assert torch.equal(val_dataset(rows, 80)[1][1], val_view(image, 80))


def crop_and_flip(side):
    bicubic = v2.InterpolationMode.BICUBIC
    return [v2.RandomResizedCrop(side, scale=(0.5, 1.0), interpolation=bicubic), v2.RandomHorizontalFlip()]


def test_at_probability_1_views_are_those_of_torchvisions_randaugment(rows):
    """Every drawn operation is applied, and no random number is drawn besides."""

    class AlwaysApplied(v2.RandAugment):
        _AUGMENTATION_SPACE = BlipRandAugment._AUGMENTATION_SPACE

    image = Image.open(rows[0].image)
    bilinear = v2.InterpolationMode.BILINEAR
    augment = v2.Compose([*crop_and_flip(80), AlwaysApplied(2, 5, 11, interpolation=bilinear, fill=GRAY)])
    for seed in range(20):
        torch.manual_seed(seed)
        assert torch.equal(train_view(image, 80, seed, 1), v2.functional.pil_to_tensor(augment(image)))


def test_at_probability_0_views_are_cropped_and_flipped_only(rows):
    image = Image.open(rows[0].image)
    augment = v2.Compose(crop_and_flip(80))
    for seed in range(20):
        torch.manual_seed(seed)
        assert torch.equal(train_view(image, 80, seed, 0), v2.functional.pil_to_tensor(augment(image)))


def test_drawn_operations_are_applied_with_the_given_probability(monkeypatch):
    applied = []
    monkeypatch.setattr(
        v2.RandAugment,
        "_apply_image_or_video_transform",
        lambda _, image, name, *rest, **settings: applied.append(name) or image,
    )
    augment = BlipRandAugment(0.3)
    for _ in range(1000):
        augment(Image.new("RGB", (8, 8)))
    # Binomial with 2000 trials: 600 expected, with a standard deviation of 20.5.
    assert 500 < len(applied) < 700


def test_only_the_originals_operations_are_applied(monkeypatch):
    counts = Counter()
    apply = v2.RandAugment._apply_image_or_video_transform

    def counting(augment, image, name, magnitude, **settings):
        counts[name, round(abs(magnitude), 4)] += 1
        return apply(augment, image, name, magnitude, **settings)

    monkeypatch.setattr(v2.RandAugment, "_apply_image_or_video_transform", counting)
    augment = BlipRandAugment(1)
    for _ in range(200):
        augment(Image.new("RGB", (384, 384)))
    assert set(counts) == {
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
    assert counts.total() == 400


# Towers


def test_states_give_the_similarities_of_transformers_retrieval_model(towers, rows):
    texts = list(CAPTIONS)
    pixels = torch.stack([val_view(Image.open(row.image), 80) for row in rows])
    mean = torch.tensor(towers.pixels.mean).view(3, 1, 1)
    std = torch.tensor(towers.pixels.std).view(3, 1, 1)
    batch = towers.tokenizer(texts, padding=True, return_tensors="pt")
    with torch.no_grad():
        expected = towers.model(
            batch.input_ids,
            (pixels / 255 - mean) / std,
            use_itm_head=False,
            attention_mask=batch.attention_mask,
        ).itm_score
        image_vectors = F.normalize(towers.model.vision_proj(towers.image_states(pixels)[:, 0]), dim=-1)
        text_vectors = F.normalize(towers.model.text_proj(towers.text_states(texts)), dim=-1)
    assert_close(image_vectors @ text_vectors.T, expected)


def test_padding_does_not_change_a_captions_state(towers):
    separate = torch.cat([towers.text_states([text]) for text in CAPTIONS])
    assert_close(towers.text_states(list(CAPTIONS)), separate)


def test_both_blip_classes_share_one_image_tower(towers):
    retriever = blip.load(BlipForImageTextRetrieval, towers.tokenizer.name_or_path)
    pixels = torch.zeros(1, 3, 80, 80, dtype=torch.uint8)
    states = Towers(retriever, towers.tokenizer, towers.pixels, towers.compute).image_states(pixels)
    assert torch.equal(states, towers.image_states(pixels))


def test_a_blip_that_only_captions_says_why_it_cannot_compare(tmp_path):
    """Like blip-image-captioning-base on the hub, which has no text encoder."""
    tokenizer = blip.word_tokenizer({"red", "one"})
    config = blip.small_config(vit.Architecture(dim=32, depth=1), len(tokenizer), layers=1, projection=16)
    del config.vision_config.stem
    BlipForConditionalGeneration(config).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    processor = BlipImageProcessorPil(image_mean=vit.MEAN, image_std=vit.STD, size={"height": 80, "width": 80})
    processor.save_pretrained(tmp_path)
    towers = load_towers(tmp_path, COMPUTE, "hub/captioner@1")
    assert towers.missing_tower.startswith("hub/captioner@1 holds no weights for itm_head, text_encoder")
    assert towers.image_states(torch.zeros(2, 3, 80, 80, dtype=torch.uint8)).shape == (2, 101, 32)


# Tables


def test_every_caption_and_every_view_is_encoded_once(towers, rows, monkeypatch, tmp_path):
    sizes = []
    image_states = Towers.image_states

    def counting(towers, pixels):
        sizes.append(len(pixels))
        return image_states(towers, pixels)

    monkeypatch.setattr(Towers, "image_states", counting)
    keys = [(row.image_id, view) for view in (0, 1) for row in rows]
    shards = Shards(Path("train"), keys, {}, waiting=tmp_path / "waiting")
    dataset = train_dataset(rows * 2, towers.pixels.side, list(range(6)), 0.5)
    views = concat_vectors(extract_shards(ViewVectorsJob(towers, dataset, keys, {}), shards, COMPUTE, "encode"))
    assert sum(sizes) == 6
    assert views.image_ids == ["id0", "id1", "id2"] * 2
    assert views.indices == [0, 0, 0, 1, 1, 1]

    captions = encode_captions(towers, rows, {})
    assert captions.image_ids == ["id0", "id0", "id0", "id1", "id1", "id2"]
    assert captions.indices == [0, 1, 2, 0, 1, 0]
    texts = [text for row in rows for text in row.captions]
    expected = torch.cat([towers.text_states([text]) for text in texts])
    assert_close(captions.values.float(), expected, relative=1e-3)  # float16 rounds by up to 2^-11 of a value


def test_vectors_round_trip_and_refuse_unexpected_metadata(tmp_path):
    vectors = Vectors(["a", "b"], [0, 3], torch.randn(2, 6), {"backbone": "x", "manifest": "m"})
    write_vectors(tmp_path / "v.parquet", vectors)
    read = read_vectors(tmp_path / "v.parquet", backbone="x")
    assert (read.image_ids, read.indices, read.metadata["manifest"]) == (["a", "b"], [0, 3], "m")
    assert torch.equal(read.values, vectors.values.half())
    with pytest.raises(InputError, match=r"v.parquet: backbone is 'x', expected 'y'"):
        read_vectors(tmp_path / "v.parquet", backbone="y")


# Captions


def test_unknown_words_are_listed_with_their_share(towers):
    share, words = unknown_words(towers.tokenizer, ["a red dog.", "a dog. on a Star, cat"])
    assert share == pytest.approx(3 / 9)
    assert words == ["dog.", "cat"]


def test_images_without_captions_are_named(rows):
    uncaptioned = replace(rows[1], captions=())
    with pytest.raises(InputError, match=r"here/captions.json: 1 image has no caption: id1"):
        encode.check_captions(Manifest((rows[0], uncaptioned), "here", ("a", "b")))


def test_the_reference_caption_depends_on_seed_and_image_only(rows):
    indices = [reference_index(row, 7) for row in rows]
    assert indices == [reference_index(row, 7) for row in reversed(rows)][::-1]
    many = [reference_index(replace(rows[0], image_id=f"x{index}"), 7) for index in range(300)]
    assert set(many) == {0, 1, 2}
    assert reference_index(rows[2], 7) == 0
