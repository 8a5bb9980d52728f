"""Captions by image id, from the layouts that they are handed out in."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from stages.data.manifest import Problems, read_text_file

LAYOUTS = (
    "{id: caption}, {id: [captions]}, COCO's {images, annotations} or Karpathy's {images: [{filename, sentences}]}"
)


def read_captions(path: Path, faults: Problems) -> dict[str, tuple[str, ...]]:
    """Captions by image id, a file's name without its suffix; what is wrong is added to `faults`.

    COCO's JSON is that of `captions_val2017.json`, Karpathy's that of `dataset_coco.json`, `dataset_flickr8k.json` and
    `dataset_flickr30k.json` (Karpathy and Fei-Fei, 2015). A list on an empty caption is a fault, an image without
    captions is not.
    """
    told = read_json(path, faults)
    return {} if told is None else parse_captions(told, path, faults)


def parse_captions(told: dict, path: Path, faults: Problems) -> dict[str, tuple[str, ...]]:
    """Captions by image id, of what a JSON file at `path` holds."""
    with collect_layout_errors(path, faults):
        by_id = _by_id(told)
        return _checked(by_id, path, faults)
    return {}


@contextmanager
def collect_layout_errors(path: Path, faults: Problems) -> Iterator[None]:
    """Whatever a file lacks of its layout becomes a fault."""
    try:
        yield
    except (KeyError, TypeError, AttributeError) as fault:
        faults.add(path, f"is neither COCO's nor Karpathy's layout: {type(fault).__name__} {fault}")


def _checked(by_id: dict[str, Any], path: Path, faults: Problems) -> dict[str, tuple[str, ...]]:
    captions = {}
    for image_id, value in by_id.items():
        if isinstance(value, list) and all(isinstance(one, str) and one.strip() for one in value):
            captions[image_id] = tuple(" ".join(one.split()) for one in value)  # COCO's have line ends in them
        else:
            faults.add(path, f"'{image_id}' holds {value!r:.60}; expected a caption or a list of captions, none empty")
    return captions


def read_json(path: Path, faults: Problems) -> dict | None:
    """The object in a JSON file, or None with a fault added."""
    before = len(faults.lines)
    text = read_text_file(path, faults)
    if len(faults.lines) > before:
        return None
    try:
        told = json.loads(text)
    except ValueError as fault:
        faults.add(path, f"no JSON: {fault}")
        return None
    if not isinstance(told, dict):
        faults.add(path, f"holds a {type(told).__name__}; expected {LAYOUTS}")
        return None
    return told


def _by_id(told: dict) -> dict[str, Any]:
    if "annotations" in told and "images" in told:
        return _coco(told)
    if isinstance(told.get("images"), list):
        return {_id(one["filename"]): [each["raw"] for each in one["sentences"]] for one in told["images"]}
    return {image_id: [value] if isinstance(value, str) else value for image_id, value in told.items()}


def _coco(told: dict) -> dict[str, list[str]]:
    names = {one["id"]: _id(one["file_name"]) for one in told["images"]}
    by_id: dict[str, list[str]] = {name: [] for name in names.values()}
    for one in told["annotations"]:
        by_id[names[one["image_id"]]].append(one["caption"])
    return by_id


def _id(filename: str) -> str:
    return Path(filename).stem
