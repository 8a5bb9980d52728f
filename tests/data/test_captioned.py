"""COCO, Flickr8k and Flickr30k: captioned images without masks."""

import json

import numpy as np
import pytest
from PIL import Image

from stages.core.stage import InputError
from stages.data.voc_folder import read_folder


def picture(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((40, 50, 3), 90, np.uint8)).save(path)


@pytest.fixture
def flickr(tmp_path):
    """Karpathy's layout: five images in three of his splits."""
    splits = {"a": "train", "b": "restval", "c": "val", "d": "val", "e": "test"}
    for name in splits:
        picture(tmp_path / f"Images/{name}.jpg")
    told = [
        {"filename": f"{name}.jpg", "split": split, "sentences": [{"raw": f"a red {name}."}, {"raw": f"two {name}\n"}]}
        for name, split in splits.items()
    ]
    (tmp_path / "dataset_flickr8k.json").write_text(json.dumps({"images": told, "dataset": "flickr8k"}))
    return tmp_path


@pytest.fixture
def coco(tmp_path):
    (tmp_path / "annotations").mkdir()
    for split, number in (("train", 1), ("val", 2)):
        name = f"{number:012d}.jpg"
        picture(tmp_path / f"{split}2017/{name}")
        held = {
            "images": [{"id": number, "file_name": name}],
            "annotations": [{"image_id": number, "caption": f"caption {one}"} for one in range(5)],
        }
        (tmp_path / f"annotations/captions_{split}2017.json").write_text(json.dumps(held))
    return tmp_path


def test_karpathys_splits_with_restval_in_train_and_test_left_out(flickr):
    manifest = read_folder(flickr)
    assert [(row.image_id, row.split) for row in manifest.rows] == [
        ("a", "train"),
        ("b", "train"),
        ("c", "val"),
        ("d", "val"),
    ]
    assert manifest.rows[0].captions == ("a red a.", "two a")
    assert (manifest.rows[0].mask, manifest.classes) == (None, ())


def test_cocos_two_files(coco):
    manifest = read_folder(coco)
    assert [row.image_id for row in manifest.split("val")] == ["000000000002"]
    assert manifest.split("val")[0].captions == tuple(f"caption {one}" for one in range(5))


def test_missing_images_and_captions_are_named_all_at_once(flickr):
    (flickr / "Images/a.jpg").unlink()
    (flickr / "Images/d.jpg").write_bytes(b"no picture")
    with pytest.raises(InputError) as fault:
        read_folder(flickr)
    assert "a.jpg: missing" in str(fault.value)
    assert "d.jpg: not a readable image" in str(fault.value)


def test_a_folder_of_no_known_layout_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"no JPEGImages/ here; expected VOC's layout, Karpathy's"):
        read_folder(tmp_path)


def test_images_without_masks_leave_segmentation_out(clone_project, flickr):
    project = clone_project()
    project.set(profile="folder", folder__path=str(flickr))
    made = project.repro("train_head@linear")
    assert made.returncode == 0, made.stdout + made.stderr
    reason = f"{flickr} has no masks: no segmentation"
    for record in ("data/features/segmentation/skipped.json", "reports/runs/segmentation/linear.json"):
        assert json.loads(project.read(record)) == {"status": "skipped", "reason": reason}
