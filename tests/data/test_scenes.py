"""The embedded source: the same seed gives the same bytes; writers stay apart."""

import hashlib
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from stages.data.images import read_mask
from stages.data.scenes.captions import CAPTIONS, scene_captions
from stages.data.scenes.digits import DIGITS, WRITERS, glyphs
from stages.data.scenes.scene import CLASSES, COLORS, draw_scene
from stages.data.scenes.shapes import SHAPES
from stages.data.scenes.source import write_object_images, write_scenes
from stages.data.voc import COLOR_MAP, VOID
from stages.data.voc_folder import read_folder


def digest(folder):
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    root = tmp_path_factory.mktemp("scenes")
    write_scenes(root, 3, {"train": 6, "val": 4})
    return root


def test_same_seed_same_bytes_another_seed_other_pictures(scenes, tmp_path):
    write_scenes(tmp_path / "again", 3, {"train": 6, "val": 4})
    assert digest(tmp_path / "again") == digest(scenes)
    write_scenes(tmp_path / "other", 4, {"train": 6, "val": 4})
    picture = "JPEGImages/train_00000.jpg"
    assert digest(tmp_path / "other")[picture] != digest(scenes)[picture]


def test_a_longer_split_begins_with_the_shorter_one(scenes, tmp_path):
    write_scenes(tmp_path, 3, {"train": 8, "val": 4})
    longer = digest(tmp_path)
    assert all(longer[name] == hashed for name, hashed in digest(scenes).items() if name.startswith("JPEGImages"))


def test_what_is_written_is_a_valid_folder(scenes):
    manifest = read_folder(scenes)
    assert manifest.classes == CLASSES
    assert len(CLASSES) == 21
    assert all(len(row.captions) == CAPTIONS and row.label is not None for row in manifest.rows)
    assert len(manifest.split("train")) == 6


def test_masks_are_palette_images_with_vocs_colors(scenes):
    with Image.open(scenes / "SegmentationClass/train_00000.png") as mask:
        assert mask.mode == "P"
        assert mask.getpalette()[:9] == [0, 0, 0, 128, 0, 0, 0, 128, 0]
    assert COLOR_MAP[VOID].tolist() == [224, 224, 192]  # the cream of VOC's borders
    assert COLOR_MAP[15].tolist() == [192, 128, 128]  # person


def test_writers_of_the_splits_share_no_scan():
    for one, other in combinations(WRITERS.values(), 2):
        assert not set(range(1797)[one]) & set(range(1797)[other])
    counts = {name: sum(len(scans) for scans in glyphs(name)) for name in WRITERS}
    assert counts == {
        **{"pretrain": 900, "pretrain_val": 100},
        **{"train": 244, "objects_train": 156, "val": 259, "objects_val": 138},
    }


@pytest.mark.parametrize("seed", range(20))
def test_every_object_has_its_label_and_a_thin_void_border(seed):
    scene = draw_scene(np.random.default_rng(seed), "train")
    labels = set(np.unique(scene.mask)) - {0, VOID}
    assert labels == {thing.label for thing in scene.objects}
    inside = (scene.mask != 0) & (scene.mask != VOID)
    near = np.zeros_like(inside)
    near[1:] |= inside[:-1]
    near[:-1] |= inside[1:]
    near[:, 1:] |= inside[:, :-1]
    near[:, :-1] |= inside[:, 1:]
    assert not (near & (scene.mask == 0)).any()  # no object touches the background
    assert 0 < (scene.mask == VOID).mean() < 0.12


def test_captions_tell_what_is_there():
    for seed in range(40):
        rng = np.random.default_rng(seed)
        scene = draw_scene(rng, "val")
        told = scene_captions(rng, scene)
        assert len(told) == CAPTIONS
        here = {thing.color for thing in scene.objects}
        for caption in told:
            named = set(caption.split()) & set(COLORS)
            assert named and named <= here
            assert "  " not in caption and caption == caption.strip()


@pytest.mark.parametrize("name", SHAPES)
def test_shapes_are_inside_in_their_middle_and_outside_far_away(name):
    far = SHAPES[name](np.array([1.6, 0.0, -1.6]), np.array([0.0, 1.6, 0.0]))
    assert (far > 0).all()
    y, x = np.mgrid[-1.2:1.2:121j, -1.2:1.2:121j]
    assert 0.1 < (SHAPES[name](x, y) < 0).mean() * 2.4**2 / np.pi < 1.05


def test_ten_digits_and_ten_shapes():
    assert CLASSES == ("background", *DIGITS, *SHAPES)


@pytest.fixture(scope="module")
def pets(tmp_path_factory):
    root = tmp_path_factory.mktemp("pets")
    write_object_images(root, 3, {"train": 43, "val": 20})
    return root


def test_pets_are_named_by_class_and_number_and_every_class_is_as_often_there(pets):
    manifest = read_folder(pets)
    assert [row.image_id for row in manifest.split("train")][::20] == ["zero_1", "zero_2", "zero_3"]
    assert manifest.split("val")[10].image_id == "circle_1001"
    for row in manifest.rows:
        name = row.image_id.split("_")[0]
        assert manifest.labels[row.label] == name
        held = set(np.unique(read_mask(Path(row.mask)))) - {0, VOID}
        assert held == {CLASSES.index(name)}
    assert not any(row.captions for row in manifest.rows)


def test_more_pets_rename_and_redraw_none(pets, tmp_path):
    write_object_images(tmp_path, 3, {"train": 63, "val": 20})
    for name in ("zero_3", "circle_1001"):
        files = [root / f"JPEGImages/{name}.jpg" for root in (pets, tmp_path)]
        assert files[0].read_bytes() == files[1].read_bytes()
