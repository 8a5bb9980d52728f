"""What is ambiguous, unsafe or too large in a folder is refused in one line that names it; nothing is misread."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT, write_mask
from PIL import Image

from stages.attention.examples import picture_path
from stages.core.stage import InputError
from stages.data import voc_folder as folders
from stages.data.images import read_mask
from stages.data.oxford_pets import read_pets
from stages.data.voc_folder import read_folder
from stages.params.experiment import load_experiment

BELL = "\x1b[31m\x07"


def problem_lines(root: Path, **options) -> list[str]:
    """Return the problems of a folder; each is one line of printable characters."""
    with pytest.raises(InputError) as caught:
        read_folder(root, **options)
    heading, *lines = str(caught.value).split("\n  ")
    assert all(line.isprintable() for line in [heading, *lines])
    return lines


def problem(root: Path, **options) -> str:
    lines = problem_lines(root, **options)
    assert len(lines) == 1, lines
    return lines[0]


def fill_masks(root: Path, image_ids: str, value: int) -> None:
    for image_id in image_ids:
        path = root / f"SegmentationClass/{image_id}.png"
        write_mask(path, np.full(read_mask(path).shape, value))


@pytest.mark.parametrize("folder", ["JPEGImages", "SegmentationClass"])
def test_two_files_of_one_id_are_both_named(voc_folder, folder):
    first = next((voc_folder / folder).glob("a.*"))
    (voc_folder / folder / "a.webp").write_bytes(first.read_bytes())
    (voc_folder / folder / "unlisted.webp").touch()
    (voc_folder / folder / "unlisted.bmp").touch()
    assert f"{folder}: {first.name} and a.webp have the same image ID" in problem(voc_folder)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a,dog\na,cat", "line 3: 'a' has the label 'dog' and the label 'cat'"),
        ('a,"dog\nb,cat\nc,dog', "line 2: not valid CSV: unexpected end of data"),
        ('a,"dog\nb,cat\nc,"', r"line 4: a name with control characters: 'dog\nb,cat\nc,'"),
        ("x,dog\ny,cat", "no split lists any of its image IDs, which are file names without suffix: 'x', 'y'"),
        ("a,dog,cat", "line 2: more cells than columns: ['cat']"),
        ("a,", "line 2: 'a' has an empty label"),
        ("a", "line 2: 'a' has an empty label"),
        (f"a,{'9' * 5000}", "line 2: a name of 5000 characters; at most 100 are allowed"),
        (f"a,{'x' * 200_000}", "line 2: not valid CSV: field larger than field limit"),
        (f"a,{BELL}", r"line 2: a name with control characters: '\x1b[31m\x07'"),
    ],
)
def test_ambiguous_labels_are_refused(voc_folder, text, message):
    (voc_folder / "labels.csv").write_text(f"image_id,label\n{text}\n")
    line = problem(voc_folder)
    assert "labels.csv: " in line and message in line
    assert len(line) < 400


def test_label_columns_are_listed_once(voc_folder):
    (voc_folder / "labels.csv").write_text("image_id,label,label\na,dog,cat\n")
    assert "columns ['image_id', 'label', 'label']; expected image_id,label" in problem(voc_folder)


def test_labels_that_python_takes_for_digits_are_words(voc_folder):
    (voc_folder / "labels.csv").write_text(f"image_id,label\na,²\nb,10\nc,{'9' * 50}\n", encoding="utf-8")
    assert read_folder(voc_folder).labels == ("10", "9" * 50, "²")


def test_ids_of_a_larger_data_set_are_counted(voc_folder, capsys):
    (voc_folder / "labels.csv").write_text("image_id,label\na,dog\nx,cat\n")
    (voc_folder / "captions.json").write_text(json.dumps({"a": "one", "x": "two", BELL: "three"}))
    assert read_folder(voc_folder).labels == ("dog",)
    output = capsys.readouterr().out
    assert "labels.csv: skipped 1 of 2 image IDs, which no split lists: 'x'" in output
    assert r"captions.json: skipped 2 of 3 image IDs, which no split lists: 'x', '\x1b[31m\x07'" in output


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"a": "one", "a": "two"}', "the key 'a' is listed 2 times in an object"),
        ('{"x": "one"}', "no split lists any of its image IDs, which are file names without suffix: 'x'"),
        (r'{"a": "\ud800"}', r"'a' holds half of a surrogate pair: ['\ud800']"),
        ("[" * 100_000, "not valid JSON: nested too deeply"),
        ('{"a": ' * 100_000, "not valid JSON: nested too deeply"),
        ('{"a": ' + "9" * 5000 + "}", "not valid JSON: Exceeds the limit"),
        (r'{"a": "\u0007"}', r"'a' holds ['\x07']; expected a caption"),
    ],
)
def test_ambiguous_captions_are_refused(voc_folder, text, message):
    (voc_folder / "captions.json").write_text(text)
    line = problem(voc_folder)
    assert "captions.json: " in line and message in line
    assert len(line) < 400


def test_control_characters_in_captions_are_spaces(voc_folder):
    (voc_folder / "captions.json").write_text(json.dumps({"a": f"a dog{BELL}\n runs"}))
    assert read_folder(voc_folder).rows[0].captions == ("a dog [31m runs",)


def test_captions_of_two_images_are_not_mixed(voc_folder):
    images = [{"id": 1, "file_name": "a.jpg"}, {"id": 1, "file_name": "b.jpg"}, {"id": 2, "file_name": "x/a.jpg"}]
    (voc_folder / "captions.json").write_text(json.dumps({"images": images, "annotations": []}))
    lines = problem_lines(voc_folder)
    assert "2 images have the id 1" in lines[0]
    assert "2 images have the image ID 'a'" in lines[1]


@pytest.mark.parametrize(
    ("image_id", "reason"),
    [
        ("../JPEGImages/c", "a file name without folder and suffix"),
        ("/etc/passwd", "a file name without folder and suffix"),
        ("..", "a file name inside the folder"),
        (r"..\c", "a file name inside the folder"),
        (f"c{BELL}", "must not have control characters"),
        ("c" * 201, "not be longer than 200 bytes"),
    ],
)
def test_ids_that_lead_out_of_the_folder_are_refused(voc_folder, image_id, reason):
    (voc_folder / "ImageSets/Segmentation/val.txt").write_text(f"c\n{image_id}\n")
    line = problem(voc_folder)
    assert "val.txt: line 2: " in line and reason in line
    with pytest.raises(InputError):
        picture_path(Path("reports"), f"../{image_id}")


@pytest.mark.parametrize("name", ["../c", "/c", "a/../../c", "a\\c", BELL, "", "."])
def test_pictures_stay_in_their_folder(name):
    with pytest.raises(InputError, match="no picture of"):
        picture_path(Path("reports"), name)
    assert picture_path(Path("reports"), "folder/c d.jpg.caption") == Path("reports/folder/c d.jpg.caption.png")


def test_a_list_of_pets_names_files_of_its_folder(tmp_path):
    for name in ("trainval.txt", "test.txt"):
        (tmp_path / name).write_text("../../Abyssinian_1 1 1 1\n")
    with pytest.raises(InputError, match="'../../Abyssinian_1 1 1 1': expected an image name"):
        read_pets(tmp_path, tmp_path, tmp_path / "masks/of/pets", {"train": 1, "val": 1})
    assert not list(tmp_path.rglob("*.png"))


def write_karpathy(root: Path, file_name: str, split: str = "val") -> None:
    images = [{"filename": "a.jpg", "split": "train"}, {"filename": file_name, "split": split}]
    content = {"images": [{**image, "sentences": [{"raw": "a dog"}]} for image in images]}
    (root / "Images").mkdir(parents=True)
    for name in ("Images/a.jpg", "b.jpg"):
        Image.new("RGB", (40, 30)).save(root / name)
    (root / "dataset.json").write_text(json.dumps(content))


@pytest.mark.parametrize("file_name", ["../b.jpg", "/b.jpg", "x\\b.jpg", f"b{BELL}.jpg", "\ud800.jpg"])
def test_file_names_of_captioned_images_stay_in_the_folder(tmp_path, file_name):
    write_karpathy(tmp_path / "images", file_name)
    lines = problem_lines(tmp_path / "images")
    assert "dataset.json: " in lines[0] and "file name" in lines[0]
    assert lines[1:] == ["val: empty split"]


def test_captioned_images_of_one_name_are_both_named(tmp_path):
    write_karpathy(tmp_path, "b.jpg")
    (tmp_path / "other").mkdir()
    (tmp_path / "other/a.jpg").write_bytes((tmp_path / "Images/a.jpg").read_bytes())
    (tmp_path / "other/b.jpg").write_bytes((tmp_path / "b.jpg").read_bytes())  # `b.jpg` is a path of its own
    line = problem(tmp_path)
    assert "several files are named a.jpg" in line and "Images/a.jpg" in line and "other/a.jpg" in line


def test_an_unknown_split_is_refused(tmp_path):
    write_karpathy(tmp_path, "b.jpg", split="validation")
    assert "KeyError 'validation'" in problem_lines(tmp_path)[0]


def test_lists_have_ids_and_numbers_only(voc_folder):
    path = voc_folder / "ImageSets/Segmentation/val.txt"
    path.write_text("c -1\n")  # as in VOC's lists of classes
    assert [row.image_id for row in read_folder(voc_folder).split("val")] == ["c"]
    path.write_text("c\nc copy\n")
    assert "line 2: 'c copy': expected an image ID without spaces" in problem(voc_folder)


def test_lists_may_have_a_byte_order_mark_and_line_ends_of_windows(voc_folder):
    (voc_folder / "ImageSets/Segmentation/train.txt").write_bytes(b"\xef\xbb\xbfa\r\nb\r\n")
    assert [row.image_id for row in read_folder(voc_folder).split("train")] == ["a", "b"]


@pytest.mark.parametrize(
    "name",
    [
        "JPEGImages/a.jpg",
        "SegmentationClass/a.png",
        "ImageSets/Segmentation/train.txt",
        "classes.txt",
        "captions.json",
        "labels.csv",
        "license.txt",
    ],
)
def test_a_pipe_is_refused_without_waiting(voc_folder, name):
    path = voc_folder / name
    path.unlink(missing_ok=True)
    os.mkfifo(path)
    lines = problem_lines(voc_folder)
    assert any(f"{name}: not a regular file" in line for line in lines)


@pytest.mark.parametrize(("image_ids", "split"), [("ab", "train"), ("c", "val")])
def test_a_split_of_void_masks_is_refused(voc_folder, image_ids, split):
    fill_masks(voc_folder, image_ids, 255)
    (voc_folder / "classes.txt").write_text("sky\nroad\ntree\n")
    assert problem(voc_folder).startswith(f"{split}: all masks of this split hold 255 (void) only")


def test_one_mask_of_a_split_may_be_void(voc_folder):
    fill_masks(voc_folder, "a", 255)
    assert len(read_folder(voc_folder).rows) == 3


def test_more_classes_than_masks_can_hold_are_refused(voc_folder):
    path = voc_folder / "classes.txt"
    path.write_text("".join(f"class {index}\n" for index in range(254)))
    assert len(read_folder(voc_folder).classes) == 254
    path.write_text("".join(f"class {index}\n" for index in range(300)))
    assert "300 classes; at most 254 fit into masks, 255 is void" in problem(voc_folder)
    path.unlink()
    fill_masks(voc_folder, "a", 254)
    assert "255 classes; at most 254" in problem(voc_folder)


@pytest.mark.parametrize(("name", "message"), [(BELL, "control characters"), ("x" * 101, "a name of 101 characters")])
def test_class_names_can_be_printed(voc_folder, name, message):
    (voc_folder / "classes.txt").write_text(f"sky\nroad\n{name}\n")
    assert "classes.txt: line 3: " in problem(voc_folder) and message in problem(voc_folder)


def test_a_license_is_a_line(voc_folder):
    (voc_folder / "license.txt").write_text(f"mine{BELL}\n")
    assert read_folder(voc_folder).license == r"mine\x1b[31m\x07"
    (voc_folder / "license.txt").write_text("x" * 2000)
    assert "license.txt: 2000 characters" in problem(voc_folder)


def resize(root: Path, width: int, height: int) -> None:
    Image.new("RGB", (width, height)).save(root / "JPEGImages/a.jpg")
    write_mask(root / "SegmentationClass/a.png", np.zeros((height, width)))


def test_images_of_many_pixels_are_refused_before_they_are_decoded(voc_folder):
    resize(voc_folder, 1000, 501)
    assert len(read_folder(voc_folder, max_pixels=501_000).rows) == 3
    with (voc_folder / "JPEGImages/a.jpg").open("r+b") as file:
        file.truncate(1000)  # only the header is read
    line = problem(voc_folder, max_pixels=500_000)
    assert "a.jpg: 1000x501 pixels, more than max_pixels = 500000 of the profile in params.yaml; resize" in line


def test_elongated_images_are_refused(voc_folder):
    resize(voc_folder, 5000, 1)
    assert "a.jpg: 5000x1 pixels: the long side is more than 16 times the short side" in problem(voc_folder)
    resize(voc_folder, 10, 160)
    assert len(read_folder(voc_folder).rows) == 3


def test_the_limit_of_the_folder_profile_is_a_param(voc_folder, monkeypatch):
    monkeypatch.chdir(ROOT)
    params = load_experiment().folder
    resize(voc_folder, 2049, 1024)
    source = folders.FolderSource(params.model_copy(update={"path": voc_folder}))
    with pytest.raises(InputError, match="more than max_pixels = 2097152"):
        source.read()
