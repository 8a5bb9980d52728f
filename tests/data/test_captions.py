"""Captions are read from the layouts of published data sets, and what is malformed is one problem per file."""

import json

import pytest
from conftest import ROOT

from stages.data.captions import read_captions
from stages.data.manifest import Problems

ASSIGNMENT_CAPTIONS = ROOT.parent / "shared/assignment/captions_v1.json"

COCO = {
    "images": [{"id": 7, "file_name": "a.jpg"}, {"id": 5, "file_name": "b.x.jpg"}, {"id": 6, "file_name": "bare.jpg"}],
    "annotations": [
        {"id": 1, "image_id": 7, "caption": "a dog"},
        {"id": 2, "image_id": 5, "caption": "two\ncats "},
        {"id": 3, "image_id": 7, "caption": "one dog"},
    ],
}
KARPATHY = {
    "dataset": "coco",
    "images": [
        {
            "filename": "a.jpg",
            "filepath": "val2014",
            "split": "test",
            "sentences": [{"raw": "a dog"}, {"raw": "one dog"}],
        },
        {"filename": "b.x.jpg", "split": "train", "sentences": [{"raw": " two  cats", "tokens": ["two", "cats"]}]},
        {"filename": "bare.jpg", "split": "train", "sentences": []},
    ],
}


def read(tmp_path, text):
    """Return the captions of a file with this text, and the problems with it."""
    path = tmp_path / "captions.json"
    path.write_text(text, encoding="utf-8")
    problems = Problems()
    return read_captions(path, problems), problems.lines


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ({"a": "a dog", "b.x": "two  cats "}, {"a": ("a dog",), "b.x": ("two cats",)}),
        ({"a": ["a dog", "one dog"], "b.x": "two cats"}, {"a": ("a dog", "one dog"), "b.x": ("two cats",)}),
        (COCO, {"a": ("a dog", "one dog"), "b.x": ("two cats",), "bare": ()}),
        (KARPATHY, {"a": ("a dog", "one dog"), "b.x": ("two cats",), "bare": ()}),
        ({"images": "a caption of a file of that name"}, {"images": ("a caption of a file of that name",)}),
    ],
)
def test_captions_are_read_from_all_layouts(tmp_path, content, expected):
    assert read(tmp_path, json.dumps(content)) == (expected, [])


def test_a_byte_order_mark_is_accepted(tmp_path):
    assert read(tmp_path, "\N{BYTE ORDER MARK}" + json.dumps({"a": "häuser"})) == ({"a": ("häuser",)}, [])


@pytest.mark.skipif(not ASSIGNMENT_CAPTIONS.is_file(), reason="the assignment's captions are not on this machine")
def test_the_assignment_has_one_caption_for_each_segmented_image_of_voc():
    problems = Problems()
    captions = read_captions(ASSIGNMENT_CAPTIONS, problems)
    assert (len(captions), problems.lines) == (2913, [])
    assert {len(texts) for texts in captions.values()} == {1}
    assert captions["2007_000032"] == ("a pink airplane on the tarmac",)
    assert all(text == text.strip() and "\n" not in text for (text,) in captions.values())


def edit(layout, *path, **changes):
    """Return a copy of a layout in which keys of the entry at `path` are changed, or deleted if they are None."""
    layout = json.loads(json.dumps(layout))
    entry = layout
    for key in path:
        entry = entry[key]
    for key, value in changes.items():
        entry[key] = value
        if value is None:
            del entry[key]
    return layout


LAYOUT_ERROR = "neither COCO's nor Karpathy's layout"


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (edit(COCO, "images", 0, file_name=None), f"{LAYOUT_ERROR}: KeyError 'file_name'"),
        (edit(COCO, "images", 0, file_name=3), f"{LAYOUT_ERROR}: TypeError"),
        (edit(COCO, "annotations", 0, image_id=99), f"{LAYOUT_ERROR}: KeyError 99"),
        (edit(COCO, "annotations", 0, caption=None), f"{LAYOUT_ERROR}: KeyError 'caption'"),
        (edit(COCO, "annotations", 0, caption=3), "'a' holds [3, 'one dog']; expected a caption"),
        (edit(COCO, images=3), f"{LAYOUT_ERROR}: TypeError"),
        (edit(COCO, images={"7": "a.jpg"}), f"{LAYOUT_ERROR}: TypeError"),
        (edit(KARPATHY, "images", 1, sentences=None), f"{LAYOUT_ERROR}: KeyError 'sentences'"),
        (edit(KARPATHY, "images", 1, sentences=["two cats"]), f"{LAYOUT_ERROR}: TypeError"),
        (edit(KARPATHY, "images", 1, filename=None), f"{LAYOUT_ERROR}: KeyError 'filename'"),
        ({"images": ["a.jpg"]}, f"{LAYOUT_ERROR}: TypeError"),
        (edit(KARPATHY, "images", 1, sentences=[{"raw": " "}]), "'b.x' holds [' ']; expected a caption"),
        ({"a": ""}, "'a' holds ['']"),
        ({"a": None}, "'a' holds None"),
        ({"a": ["one", 2]}, "'a' holds ['one', 2]"),
        ({"a": {"raw": "one"}}, "'a' holds {'raw': 'one'}"),
        ([{"a": "one"}], "holds a list; expected {id: caption}"),
    ],
)
def test_malformed_captions_are_one_line_that_names_the_file(tmp_path, content, problem):
    _, problems = read(tmp_path, json.dumps(content))
    assert len(problems) == 1
    assert problems[0].startswith(f"{tmp_path / 'captions.json'}: ") and problem in problems[0]
    assert "\n" not in problems[0]


@pytest.mark.parametrize("text", ["{", "[1,", "captions", ""])
def test_invalid_json_is_one_line_that_names_the_file(tmp_path, text):
    captions, problems = read(tmp_path, text)
    assert captions == {}
    assert len(problems) == 1 and "captions.json: not valid JSON" in problems[0]
