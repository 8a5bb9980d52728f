"""Oxford-IIIT Pet: labels are breeds, masks come from trimaps, and all problems are listed at once."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from stages.core.stage import InputError
from stages.data.images import read_mask
from stages.data.oxford_pets import read_pets


@pytest.fixture
def pets(tmp_path):
    """Three images of two breeds, with all trimap values."""
    trimap = np.array([[1, 2, 3], [3, 1, 2]], np.uint8)
    for folder in ("images", "annotations/trimaps"):
        (tmp_path / folder).mkdir(parents=True)
    for name in ("great_dane_1", "Bengal_2", "Bengal_12"):
        Image.new("RGB", (3, 2)).save(tmp_path / f"images/{name}.jpg")
        Image.fromarray(trimap).save(tmp_path / f"annotations/trimaps/{name}.png")
    (tmp_path / "annotations/trainval.txt").write_text("#Image CLASS-ID SPECIES\ngreat_dane_1 2 2 1\nBengal_2 1 1 1\n")
    (tmp_path / "annotations/test.txt").write_text("Bengal_12 1 1 1\n\n")
    return tmp_path


def read(root, **expected):
    return read_pets(root / "images", root / "annotations", root / "masks", {"train": 2, "val": 1} | expected)


def refusal(root, **expected):
    with pytest.raises(InputError) as caught:
        read(root, **expected)
    return str(caught.value)


def test_rows_labels_and_masks_match_by_hand(pets):
    manifest = read(pets)
    assert manifest.labels == ("Bengal", "great dane")
    assert [(row.image_id, row.split, row.label) for row in manifest.rows] == [
        ("great_dane_1", "train", 1),
        ("Bengal_2", "train", 0),
        ("Bengal_12", "val", 0),
    ]
    assert read_mask(Path(manifest.rows[1].mask)).tolist() == [[1, 0, 255], [255, 1, 0]]
    with Image.open(manifest.rows[1].mask) as mask:
        assert mask.mode == "P"
        assert mask.getpalette()[3:6] == [128, 0, 0]  # VOC's color of class 1


def test_all_problems_are_listed_at_once(pets):
    (pets / "annotations/trimaps/great_dane_1.png").unlink()
    (pets / "annotations/trimaps/Bengal_12.png").write_bytes(b"not an image")
    (pets / "images/Bengal_2.jpg").unlink()
    (pets / "annotations/test.txt").write_text("Bengal_12 1 1 1\nBengal_13\n")
    message = refusal(pets, train=3680, val=3669)
    for problem in (
        "annotations/trainval.txt: 2 images; expected 3680",
        "annotations/test.txt: 1 images; expected 3669",
        "annotations/test.txt: 'Bengal_13': expected an image name and a class number",
        "annotations/trimaps/great_dane_1.png: missing",
        "annotations/trimaps/Bengal_12.png: not a readable image",
        "images/Bengal_2.jpg: missing",
    ):
        assert f"{pets}/{problem}" in message


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("Bengal_12 one", "'Bengal_12 one': expected an image name and a class number"),
        ("Bengal_12 0", "'Bengal_12 0': expected an image name and a class number"),
        ("Bengal_12 -1", "'Bengal_12 -1': expected an image name and a class number"),
        ("Bengal_12 ²", "expected an image name and a class number"),
        ("Bengal_12 4", "annotations: classes [1, 2, 4]; expected 1 to 3"),
        ("Bengal_2 1", "Bengal_2: duplicate image ID, listed 2 times"),
        ("", "val: empty split"),
        ("Bengal_12 2", "class 2 is 'great dane', but 'Bengal' at Bengal_12"),
    ],
)
def test_wrong_lines_of_lists_are_named(pets, line, problem):
    (pets / "annotations/test.txt").write_text(f"{line}\n", encoding="utf-8")
    assert problem in refusal(pets)


def test_a_list_must_be_text_and_exist(pets):
    (pets / "annotations/test.txt").write_bytes(b"\xff\xfe\x00")
    assert "test.txt: not UTF-8 text" in refusal(pets)
    (pets / "annotations/test.txt").unlink()
    assert f"{pets}/annotations/test.txt: missing" in refusal(pets)
