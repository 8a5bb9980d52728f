"""Drawn data sets: the same seed gives the same bytes, and splits share no writers."""

import hashlib
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT
from PIL import Image
from scipy import ndimage

from stages.data.images import read_mask
from stages.data.scenes import source
from stages.data.scenes.captions import CAPTIONS, scene_captions
from stages.data.scenes.digits import DIGITS, WRITERS, glyphs
from stages.data.scenes.folders import write_object_images, write_scenes
from stages.data.scenes.scene import CLASSES, COLORS, draw_scene
from stages.data.scenes.shapes import SHAPES
from stages.data.voc import COLOR_MAP, VOID
from stages.data.voc_folder import read_folder
from stages.params.experiment import Embedded
from stages.params.section import read_params


def file_hashes(folder):
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    root = tmp_path_factory.mktemp("scenes")
    write_scenes(root, 3, {"train": 6, "val": 4})
    return root


def test_the_seed_determines_all_bytes(scenes, tmp_path):
    write_scenes(tmp_path / "same_seed", 3, {"train": 6, "val": 4})
    assert file_hashes(tmp_path / "same_seed") == file_hashes(scenes)
    write_scenes(tmp_path / "another_seed", 4, {"train": 6, "val": 4})
    image = "JPEGImages/train_00000.jpg"
    assert file_hashes(tmp_path / "another_seed")[image] != file_hashes(scenes)[image]


def test_a_longer_split_begins_with_the_shorter_one(scenes, tmp_path):
    write_scenes(tmp_path, 3, {"train": 8, "val": 4})
    assert file_hashes(scenes / "JPEGImages").items() <= file_hashes(tmp_path / "JPEGImages").items()


def test_written_scenes_are_a_valid_folder(scenes):
    manifest = read_folder(scenes)
    assert manifest.classes == CLASSES
    assert len(CLASSES) == 21
    assert all(len(row.captions) == CAPTIONS and row.label is not None for row in manifest.rows)
    assert len(manifest.split("train")) == 6


def test_masks_are_palette_images_in_the_colors_of_voc(scenes):
    with Image.open(scenes / "SegmentationClass/train_00000.png") as mask:
        assert mask.mode == "P"
        assert mask.getpalette()[:9] == [0, 0, 0, 128, 0, 0, 0, 128, 0]
    assert COLOR_MAP[VOID].tolist() == [224, 224, 192]  # cream: VOC's borders
    assert COLOR_MAP[15].tolist() == [192, 128, 128]  # person


def test_splits_share_no_scans():
    for first, second in combinations(WRITERS.values(), 2):
        assert not set(range(1797)[first]) & set(range(1797)[second])
    counts = {name: sum(len(scans) for scans in glyphs(name)) for name in WRITERS}
    assert counts == {
        **{"pretrain": 900, "pretrain_val": 100},
        **{"train": 244, "objects_train": 156, "val": 259, "objects_val": 138},
    }


@pytest.mark.parametrize("seed", range(20))
def test_every_object_has_its_label_and_a_thin_void_border(seed):
    scene = draw_scene(np.random.default_rng(seed), "train")
    labels = set(np.unique(scene.mask)) - {0, VOID}
    assert labels == {obj.label for obj in scene.objects}
    inside = (scene.mask != 0) & (scene.mask != VOID)
    neighbors = ndimage.binary_dilation(inside)
    assert not (neighbors & (scene.mask == 0)).any()  # no object touches the background
    assert 0 < (scene.mask == VOID).mean() < 0.12


def test_captions_name_colors_of_the_scene():
    for seed in range(40):
        rng = np.random.default_rng(seed)
        scene = draw_scene(rng, "val")
        captions = scene_captions(rng, scene)
        assert len(captions) == CAPTIONS
        for caption in captions:
            colors = set(caption.split()) & set(COLORS)
            assert colors and colors <= {obj.color for obj in scene.objects}
            assert "  " not in caption and caption == caption.strip()


@pytest.mark.parametrize("name", SHAPES)
def test_shapes_have_an_area_and_are_bounded(name):
    far = SHAPES[name](np.array([1.6, 0.0, -1.6]), np.array([0.0, 1.6, 0.0]))
    assert (far > 0).all()
    y, x = np.mgrid[-1.2:1.2:121j, -1.2:1.2:121j]
    area = (SHAPES[name](x, y) < 0).mean() * 2.4**2
    assert 0.1 < area / np.pi < 1.05  # relative to the unit disc


def test_classes_are_the_background_digits_and_shapes():
    assert CLASSES == ("background", *DIGITS, *SHAPES)


@pytest.fixture(scope="module")
def object_images(tmp_path_factory):
    root = tmp_path_factory.mktemp("objects")
    write_object_images(root, 3, {"train": 43, "val": 20})
    return root


def test_object_images_are_named_by_class_and_number_with_classes_in_turn(object_images):
    manifest = read_folder(object_images)
    assert [row.image_id for row in manifest.split("train")][::20] == ["zero_1", "zero_2", "zero_3"]
    assert manifest.split("val")[10].image_id == "circle_1001"
    for row in manifest.rows:
        name = row.image_id.split("_")[0]
        assert manifest.labels[row.label] == name
        values = set(np.unique(read_mask(Path(row.mask)))) - {0, VOID}
        assert values == {CLASSES.index(name)}
    assert not any(row.captions for row in manifest.rows)


def test_more_object_images_keep_the_names_and_bytes_of_fewer(object_images, tmp_path):
    write_object_images(tmp_path, 3, {"train": 63, "val": 20})
    assert file_hashes(object_images / "JPEGImages").items() <= file_hashes(tmp_path / "JPEGImages").items()


def test_the_source_draws_scenes_and_object_images_in_the_numbers_of_the_params(tmp_path, monkeypatch):
    monkeypatch.setattr(source, "SCENES", tmp_path / "scenes")
    monkeypatch.setattr(source, "OBJECTS", tmp_path / "objects")
    counts = {"train": 3, "val": 2, "objects_train": 20, "objects_val": 21}
    scenes = source.ScenesSource(Embedded(**read_params(ROOT / "params.yaml")["embedded"] | counts))
    manifest = scenes.read()
    labeled = scenes.read_labeled(manifest)
    assert (manifest.source, labeled.source) == (str(tmp_path / "scenes"), str(tmp_path / "objects"))
    assert [len(manifest.split("train")), len(manifest.split("val"))] == [3, 2]
    assert [len(labeled.split("train")), len(labeled.split("val"))] == [20, 21]
