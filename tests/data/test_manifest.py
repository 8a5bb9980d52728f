"""The folder source reads what people have, and lists all that is wrong in one pass."""

import json
from dataclasses import replace

import numpy as np
import pytest
from conftest import ROOT, write_mask
from PIL import Image

from stages.core.stage import InputError
from stages.data import manifest as manifests
from stages.data import voc
from stages.data.images import find_images, read_image, read_mask
from stages.data.voc_folder import read_folder

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
    (voc_folder / "license.txt").write_text("mine\n")
    manifest = read_folder(voc_folder)
    assert manifest.classes == ("sky", "road", "tree", "car")
    assert [row.captions for row in manifest.rows] == [("one road",), ("two", "three"), ()]
    assert manifest.labels == ("cat", "dog")
    assert [row.label for row in manifest.rows] == [1, None, 0]
    assert manifest.license == "mine"


def test_written_and_read_it_is_the_same(voc_folder, tmp_path):
    (voc_folder / "captions.json").write_text(json.dumps({"a": ["x", "y"]}))
    manifest = read_folder(voc_folder)
    manifests.write_manifest(manifest, tmp_path / "m.parquet")
    assert manifests.read_manifest(tmp_path / "m.parquet") == manifest


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


def test_a_redrawn_mask_makes_another_manifest(voc_folder):
    before = read_folder(voc_folder)
    write_mask(voc_folder / "SegmentationClass/a.png", np.full((24, 32), 2))
    after = read_folder(voc_folder)
    assert after != before
    assert [row.content for row in after.rows[1:]] == [row.content for row in before.rows[1:]]


def test_masks_of_one_class_are_refused(voc_folder):
    """0 and 255 are a common way to write foreground masks; here 255 is void, and every score would be 100."""
    for path in (voc_folder / "SegmentationClass").iterdir():
        shape = read_mask(path).shape
        write_mask(path, np.where(np.arange(shape[1]) > 5, 255, 0) * np.ones((shape[0], 1)))
    assert "masks hold 1 class; at least 2 are needed" in refusal(voc_folder)


@pytest.mark.parametrize(
    ("names", "told"),
    [("a\nb\na\n", "class name 'a' stands 2 times"), ("a\n\nb\nc\n", "classes.txt: line 2 is empty")],
)
def test_class_names_stand_once_and_without_gaps(voc_folder, names, told):
    (voc_folder / "classes.txt").write_text(names)
    assert told in refusal(voc_folder)


def test_text_files_may_have_a_byte_order_mark_but_must_be_utf8(voc_folder):
    (voc_folder / "classes.txt").write_text("sky\nroad\ntree\n", encoding="utf-8-sig")
    assert read_folder(voc_folder).classes == ("sky", "road", "tree")
    (voc_folder / "classes.txt").write_bytes("ciel\nroute\nch\xeane\n".encode("latin-1"))
    assert "classes.txt: no UTF-8" in refusal(voc_folder)


def test_captions_must_be_an_object(voc_folder):
    (voc_folder / "captions.json").write_text('["a dog"]')
    assert "captions.json: holds a list" in refusal(voc_folder)


def test_a_source_may_bring_its_own_names(voc_folder):
    assert read_folder(voc_folder, voc.CLASSES).classes[:2] == ("background", "aeroplane")
    assert len(voc.CLASSES) == 21


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
        gray = Image.fromarray(np.asarray(mask).copy())
    gray.save(voc_folder / "SegmentationClass/a.png")
    assert gray.mode == "L"
    after = read_folder(voc_folder)
    assert [replace(row, content="") for row in after.rows] == [replace(row, content="") for row in before.rows]


@pytest.mark.skipif(not STREET.is_dir(), reason="the street photographs are not beside the project")
def test_real_street_photographs():
    manifest = read_folder(STREET)
    assert (len(manifest.split("train")), len(manifest.split("val")), len(manifest.classes)) == (60, 30, 11)
    assert {(row.width, row.height) for row in manifest.rows} == {(320, 240)}


def test_images_are_found_in_folders_and_by_name(tmp_path):
    (tmp_path / "a/b").mkdir(parents=True)
    for name in ("a/one.jpg", "a/b/two.PNG", "a/notes.txt", "three.webp"):
        (tmp_path / name).touch()
    found = find_images([tmp_path / "a", tmp_path / "three.webp"])
    assert found == {
        "b/two.PNG": tmp_path / "a/b/two.PNG",
        "one.jpg": tmp_path / "a/one.jpg",
        "three.webp": tmp_path / "three.webp",
    }
    assert find_images([tmp_path / "a/one.jpg", tmp_path / "a"]).keys() == {"one.jpg", "b/two.PNG"}  # the same file
    for asked, told in (
        ([tmp_path / "nowhere.jpg"], "nowhere.jpg: missing"),
        ([tmp_path / "a/b", tmp_path / "a/notes.txt", tmp_path / "empty"], "empty: no images in this folder"),
    ):
        (tmp_path / "empty").mkdir(exist_ok=True)
        with pytest.raises(InputError, match=told):
            find_images(asked)
    (tmp_path / "one.jpg").touch()
    with pytest.raises(InputError, match="would both be called 'one.jpg'"):
        find_images([tmp_path / "a", tmp_path / "one.jpg"])
