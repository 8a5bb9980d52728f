"""Captioned folders without masks, in the layouts of COCO, Flickr8k and Flickr30k."""

import json

import numpy as np
import pytest
from PIL import Image

from stages.core.stage import InputError
from stages.data.voc_folder import read_folder


def write_image(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((40, 50, 3), 90, np.uint8)).save(path)


@pytest.fixture
def flickr(tmp_path):
    """Karpathy's layout: five images in his four splits."""
    images = []
    for name, split in {"a": "train", "b": "restval", "c": "val", "d": "val", "e": "test"}.items():
        write_image(tmp_path / f"Images/{name}.jpg")
        sentences = [{"raw": f"a red {name}."}, {"raw": f"two {name}\n"}]
        images.append({"filename": f"{name}.jpg", "split": split, "sentences": sentences})
    content = {"images": images, "dataset": "flickr8k"}
    (tmp_path / "dataset_flickr8k.json").write_text(json.dumps(content))
    return tmp_path


@pytest.fixture
def coco(tmp_path):
    (tmp_path / "annotations").mkdir()
    for split, number in (("train", 1), ("val", 2)):
        name = f"{number:012d}.jpg"
        write_image(tmp_path / f"{split}2017/{name}")
        content = {
            "images": [{"id": number, "file_name": name}],
            "annotations": [{"image_id": number, "caption": f"caption {index}"} for index in range(5)],
        }
        (tmp_path / f"annotations/captions_{split}2017.json").write_text(json.dumps(content))
    return tmp_path


def refusal(root):
    with pytest.raises(InputError) as caught:
        read_folder(root)
    return str(caught.value)


def test_karpathy_splits_have_restval_in_train_and_omit_test(flickr):
    manifest = read_folder(flickr)
    splits = [(row.image_id, row.split) for row in manifest.rows]
    assert splits == [("a", "train"), ("b", "train"), ("c", "val"), ("d", "val")]
    assert manifest.rows[0].captions == ("a red a.", "two a")
    assert manifest.rows[0].mask is None
    assert manifest.classes == ()


def test_coco_has_one_file_per_split(coco):
    manifest = read_folder(coco)
    assert [row.image_id for row in manifest.split("val")] == ["000000000002"]
    assert manifest.split("val")[0].captions == tuple(f"caption {index}" for index in range(5))


def test_two_files_for_the_same_split_are_refused(flickr, coco):
    # Both fixtures share a folder: Karpathy's file goes first.
    (flickr / "dataset_coco.json").write_text("{}")
    assert "dataset_coco.json, dataset_flickr8k.json: more than one file for a split" in refusal(flickr)
    for path in flickr.glob("dataset*.json"):
        path.unlink()
    (coco / "annotations/captions_val2014.json").write_text("{}")
    assert "captions_val2014.json, captions_val2017.json: more than one file for a split" in refusal(coco)


def test_all_missing_and_unreadable_images_are_listed(flickr):
    (flickr / "Images/a.jpg").unlink()
    (flickr / "Images/d.jpg").write_bytes(b"not an image")
    message = refusal(flickr)
    assert "a.jpg: missing" in message
    assert "d.jpg: not a readable image" in message


@pytest.mark.parametrize("name", ["dataset_coco.json", "annotations/captions_val2017.json"])
def test_malformed_captions_are_refused(tmp_path, name):
    (tmp_path / "annotations").mkdir()
    (tmp_path / "annotations/captions_train2017.json").write_text(json.dumps({"images": [], "annotations": []}))
    (tmp_path / name).write_text(json.dumps({"images": [{"id": 1, "split": "val"}], "annotations": []}))
    assert f"{name}: is in neither COCO's nor Karpathy's layout: KeyError" in refusal(tmp_path)


def test_a_folder_of_unknown_layout_is_refused(tmp_path):
    assert "no JPEGImages/ here; expected VOC's layout, Karpathy's" in refusal(tmp_path)


def test_a_source_without_masks_skips_segmentation(clone_project, flickr):
    project = clone_project()
    project.set(profile="folder", folder__path=str(flickr))
    result = project.repro("train_head@linear-1")
    assert result.returncode == 0, result.stdout + result.stderr
    reason = f"{flickr} has no masks: no segmentation"
    assert reason in project.read("reports/runs/segmentation/linear-seed1.json").decode()
