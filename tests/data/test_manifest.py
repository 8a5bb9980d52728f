"""Folders in VOC's layout become manifests, and all problems of a folder are listed at once."""

import json
from dataclasses import replace

import numpy as np
import pytest
from conftest import ROOT, write_mask
from PIL import Image

from stages.core.stage import InputError
from stages.data import manifest as manifests
from stages.data import voc
from stages.data.images import read_mask
from stages.data.voc_folder import read_folder

STREET = ROOT.parent / "shared/data/street"


def refusal(root):
    with pytest.raises(InputError) as caught:
        read_folder(root)
    return str(caught.value)


def test_rows_have_sizes_and_classes_are_numbered(voc_folder):
    manifest = read_folder(voc_folder)
    assert [(row.image_id, row.split, row.height, row.width) for row in manifest.rows] == [
        ("a", "train", 24, 32),
        ("b", "train", 40, 30),
        ("c", "val", 33, 47),
    ]
    assert manifest.classes == ("class 0", "class 1", "class 2")
    assert manifest.rows[0].captions == ()
    assert manifest.rows[0].label is None


def test_classes_captions_labels_and_license_are_read_from_their_files(voc_folder):
    (voc_folder / "classes.txt").write_text("sky\nroad\ntree\ncar\n")
    (voc_folder / "captions.json").write_text(json.dumps({"a": "one road", "b": ["two", "three"], "unused": "x"}))
    (voc_folder / "labels.csv").write_text("image_id,label\na,dog\nc,cat\nunused,cow\n")
    (voc_folder / "license.txt").write_text("mine\n")
    manifest = read_folder(voc_folder)
    assert manifest.classes == ("sky", "road", "tree", "car")
    assert [row.captions for row in manifest.rows] == [("one road",), ("two", "three"), ()]
    assert manifest.labels == ("cat", "dog")
    assert [row.label for row in manifest.rows] == [1, None, 0]
    assert manifest.license == "mine"


def test_labels_that_are_numbers_are_in_numeric_order_before_words(voc_folder):
    (voc_folder / "labels.csv").write_text("image_id,label\na,10\nb,cat\nc,9\n")
    assert read_folder(voc_folder).labels == ("9", "10", "cat")


def test_a_manifest_is_read_as_it_was_written(voc_folder, tmp_path):
    (voc_folder / "captions.json").write_text(json.dumps({"a": ["x", "y"]}))
    manifest = read_folder(voc_folder)
    manifests.write_manifest(manifest, tmp_path / "manifest.parquet")
    assert manifests.read_manifest(tmp_path / "manifest.parquet") == manifest


def test_all_problems_are_listed_at_once(voc_folder):
    images = voc_folder / "JPEGImages"
    masks = voc_folder / "SegmentationClass"
    content = (images / "a.jpg").read_bytes()
    (images / "a.jpg").write_bytes(content[:-200])
    (masks / "b.png").unlink()
    write_mask(masks / "c.png", np.zeros((5, 6)))
    (voc_folder / "ImageSets/Segmentation/val.txt").write_text("c\nc\nunknown\n")
    (voc_folder / "classes.txt").write_text("only\n")
    message = refusal(voc_folder)
    heading, *lines = message.splitlines()
    assert heading == (
        f"{voc_folder}: {len(lines)} problems. All problems are listed; nothing is written until you fix them."
    )
    assert "a.jpg: " in message and "truncated" in message
    assert "b.png: missing" in message
    assert "c.png: mask is 6x5, its image 47x33 pixels" in message
    assert "c: duplicate image ID, listed 2 times" in message
    assert "unknown.jpg: missing" in message
    assert "a.png: mask value [1, 2] out of range; allowed 0..0 and 255 (void)" in message


def test_the_content_hash_covers_the_mask(voc_folder):
    before = read_folder(voc_folder)
    write_mask(voc_folder / "SegmentationClass/a.png", np.full((24, 32), 2))
    after = read_folder(voc_folder)
    changed = [old.content != new.content for old, new in zip(before.rows, after.rows, strict=True)]
    assert changed == [True, False, False]


def test_masks_of_one_class_are_refused(voc_folder):
    for path in (voc_folder / "SegmentationClass").iterdir():
        shape = read_mask(path).shape
        write_mask(path, np.where(np.arange(shape[1]) > 5, 255, 0) * np.ones((shape[0], 1)))
    assert "masks hold 1 class; at least 2 are needed" in refusal(voc_folder)


@pytest.mark.parametrize(
    ("names", "message"),
    [("a\nb\na\n", "class name 'a' is listed 2 times"), ("a\n\nb\nc\n", "classes.txt: line 2 is empty")],
)
def test_class_names_must_be_unique_and_without_gaps(voc_folder, names, message):
    (voc_folder / "classes.txt").write_text(names)
    assert message in refusal(voc_folder)


def test_text_files_are_utf8_with_or_without_a_byte_order_mark(voc_folder):
    (voc_folder / "classes.txt").write_text("sky\nroad\ntree\n", encoding="utf-8-sig")
    assert read_folder(voc_folder).classes == ("sky", "road", "tree")
    (voc_folder / "classes.txt").write_bytes("ciel\nroute\nch\xeane\n".encode("latin-1"))
    assert "classes.txt: not UTF-8 text" in refusal(voc_folder)


def test_a_caller_may_name_the_classes(voc_folder):
    assert read_folder(voc_folder, voc.CLASSES).classes == voc.CLASSES
    assert len(voc.CLASSES) == 21


def test_empty_splits_and_missing_lists_are_refused(voc_folder):
    (voc_folder / "ImageSets/Segmentation/val.txt").write_text("\n")
    assert "val: empty split" in refusal(voc_folder)
    (voc_folder / "ImageSets/Segmentation/train.txt").unlink()
    assert "train.txt: missing" in refusal(voc_folder)


def test_bad_captions_labels_and_masks_are_named(voc_folder):
    (voc_folder / "captions.json").write_text(json.dumps({"a": "", "b": 3}))
    (voc_folder / "labels.csv").write_text("id,name\na,b\n")
    Image.new("RGB", (32, 24)).save(voc_folder / "SegmentationClass/a.png")
    message = refusal(voc_folder)
    assert "'a' holds ['']" in message and "'b' holds 3" in message
    assert "expected image_id,label" in message
    assert "a.png: a mask of mode RGB" in message


def test_gray_masks_equal_palette_masks(voc_folder):
    before = read_folder(voc_folder)
    path = voc_folder / "SegmentationClass/a.png"
    Image.fromarray(read_mask(path), mode="L").save(path)
    after = read_folder(voc_folder)
    assert [replace(row, content="") for row in after.rows] == [replace(row, content="") for row in before.rows]


@pytest.mark.skipif(not STREET.is_dir(), reason="the street photographs are not on this machine")
def test_real_street_photographs_are_read():
    manifest = read_folder(STREET)
    assert (len(manifest.split("train")), len(manifest.split("val")), len(manifest.classes)) == (60, 30, 11)
    assert {(row.width, row.height) for row in manifest.rows} == {(320, 240)}
