"""The folder source reads what people have, and lists all that is wrong in one pass."""

import json

import numpy as np
import pytest
from conftest import ROOT, write_mask
from PIL import Image

from stages.data import manifest as manifests
from stages.data.folder import read_folder
from stages.data.images import read_image
from stages.stage import InputError

STREET = ROOT.parent / "shared/data/street"


def refusal(root):
    with pytest.raises(InputError) as caught:
        read_folder(root)
    return str(caught.value)


def test_rows_sizes_and_numbered_classes(voc_folder):
    manifest = read_folder(voc_folder)
    assert [(row.image_id, row.split, row.height, row.width) for row in manifest.rows] == [
        ("a", "train", 24, 32),
        ("b", "train", 40, 30),
        ("c", "val", 33, 47),
    ]
    assert manifest.classes == ("class 0", "class 1", "class 2")
    assert manifest.rows[0].captions == ()
    assert manifest.rows[0].label is None


def test_names_captions_and_labels_come_from_their_files(voc_folder):
    (voc_folder / "classes.txt").write_text("sky\nroad\ntree\ncar\n")
    (voc_folder / "captions.json").write_text(json.dumps({"a": "one road", "b": ["two", "three"], "unused": "x"}))
    (voc_folder / "labels.csv").write_text("image_id,label\na,dog\nc,cat\n")
    (voc_folder / "licence.txt").write_text("mine\n")
    manifest = read_folder(voc_folder)
    assert manifest.classes == ("sky", "road", "tree", "car")
    assert [row.captions for row in manifest.rows] == [("one road",), ("two", "three"), ()]
    assert manifest.labels == ("cat", "dog")
    assert [row.label for row in manifest.rows] == [1, None, 0]
    assert manifest.licence == "mine"


def test_written_and_read_it_is_the_same(voc_folder, tmp_path):
    (voc_folder / "captions.json").write_text(json.dumps({"a": ["x", "y"]}))
    manifest = read_folder(voc_folder)
    manifests.write(manifest, tmp_path / "m.parquet")
    assert manifests.read(tmp_path / "m.parquet") == manifest


def test_all_faults_in_one_pass(voc_folder):
    images, masks = voc_folder / "JPEGImages", voc_folder / "SegmentationClass"
    whole = (images / "a.jpg").read_bytes()
    (images / "a.jpg").write_bytes(whole[: len(whole) - 200])
    (masks / "b.png").unlink()
    write_mask(masks / "c.png", np.zeros((5, 6)))
    (voc_folder / "ImageSets/Segmentation/val.txt").write_text("c\nc\nnone\n")
    (voc_folder / "classes.txt").write_text("only\n")
    told = refusal(voc_folder)
    assert "a.jpg: " in told and "truncated" in told
    assert "b.png: missing" in told
    assert "c.png: mask is 6x5, its image 47x33 pixels" in told
    assert "c: duplicate id, listed 2 times" in told
    assert "none.jpg: missing" in told
    assert "a.png: mask value [1, 2] out of range; allowed 0..0 and 255 (void)" in told
    assert "nothing written" in told


def test_empty_split_and_missing_list(voc_folder):
    (voc_folder / "ImageSets/Segmentation/val.txt").write_text("\n")
    assert "val: empty split" in refusal(voc_folder)
    (voc_folder / "ImageSets/Segmentation/train.txt").unlink()
    assert "train.txt: missing" in refusal(voc_folder)


def test_no_voc_layout(tmp_path):
    assert "no JPEGImages/ here" in refusal(tmp_path)


def test_bad_captions_labels_and_masks_are_named(voc_folder):
    (voc_folder / "captions.json").write_text(json.dumps({"a": "", "b": 3}))
    (voc_folder / "labels.csv").write_text("id,name\na,b\n")
    Image.new("RGB", (32, 24)).save(voc_folder / "SegmentationClass/a.png")
    told = refusal(voc_folder)
    assert "'a' holds ['']" in told and "'b' holds 3" in told
    assert "expected image_id,label" in told
    assert "a.png: a mask of mode RGB" in told


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "CMYK", "P", "LA", "1"])
def test_images_of_any_mode_become_rgb(tmp_path, mode):
    path = tmp_path / ("x.jpg" if mode in ("RGB", "L", "CMYK") else "x.png")
    Image.new("RGB", (8, 4), (255, 255, 255)).convert(mode).save(path)
    image = read_image(path)
    assert (image.mode, image.size) == ("RGB", (8, 4))
    assert np.asarray(image).min() > 250


def test_exif_rotation_is_applied(tmp_path):
    pixels = np.zeros((4, 8, 3), np.uint8)
    pixels[:, 4:] = 255
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees clockwise to show
    Image.fromarray(pixels).save(tmp_path / "x.png", exif=exif)
    upright = np.asarray(read_image(tmp_path / "x.png"))
    assert upright.shape == (8, 4, 3)
    assert upright[:4].max() == 0
    assert upright[4:].min() == 255


def test_grey_masks_count_like_palette_masks(voc_folder):
    before = read_folder(voc_folder)
    with Image.open(voc_folder / "SegmentationClass/a.png") as mask:
        grey = Image.fromarray(np.asarray(mask).copy())
    grey.save(voc_folder / "SegmentationClass/a.png")
    assert grey.mode == "L"
    assert read_folder(voc_folder) == before


@pytest.mark.skipif(not STREET.is_dir(), reason="the street photographs are not beside the project")
def test_real_street_photographs():
    manifest = read_folder(STREET)
    assert (len(manifest.split("train")), len(manifest.split("val")), len(manifest.classes)) == (60, 30, 11)
    assert {(row.width, row.height) for row in manifest.rows} == {(320, 240)}
