"""Read captions by image ID from JSON, in the layouts of published data sets."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from stages.data.manifest import Problems

LAYOUTS = (
    "{id: caption}, {id: [captions]}, COCO's {images, annotations} or Karpathy's {images: [{filename, sentences}]}"
)


def read_captions(path: Path, problems: Problems) -> dict[str, tuple[str, ...]]:
    """Return captions by image ID (a file name without its suffix); add what is wrong with them to `problems`.

    COCO's layout is that of `captions_val2017.json`, Karpathy's that of `dataset_coco.json`, `dataset_flickr8k.json`
    and `dataset_flickr30k.json` (Karpathy and Fei-Fei, 2015). An image may have no captions, but no empty caption.
    """
    content = read_json(path, problems)
    return {} if content is None else parse_captions(content, path, problems)


def parse_captions(content: dict, path: Path, problems: Problems) -> dict[str, tuple[str, ...]]:
    """Return captions by image ID, given the content of the JSON file at `path`."""
    captions = {}
    with collect_layout_errors(path, problems):
        for image_id, texts in _texts_by_id(content).items():
            if isinstance(texts, list) and all(isinstance(text, str) and text.strip() for text in texts):
                captions[image_id] = tuple(" ".join(text.split()) for text in texts)  # some of COCO's have line breaks
            else:
                expected = "expected a caption or a list of captions, none empty"
                problems.add(path, f"'{image_id}' holds {texts!r:.60}; {expected}")
    return captions


@contextmanager
def collect_layout_errors(path: Path, problems: Problems) -> Iterator[None]:
    """Turn the errors of reading missing keys and wrong types into a problem of `path`."""
    try:
        yield
    except (KeyError, TypeError, AttributeError) as error:
        problems.add(path, f"is in neither COCO's nor Karpathy's layout: {type(error).__name__} {error}")


def read_json(path: Path, problems: Problems) -> dict | None:
    """Return the object in a JSON file; None and a problem if there is none."""
    try:
        content = json.loads(path.read_bytes())  # bytes: a byte order mark is accepted
    except ValueError as error:  # of the encoding, too
        problems.add(path, f"not valid JSON: {error}")
        return None
    if not isinstance(content, dict):
        problems.add(path, f"holds a {type(content).__name__}; expected {LAYOUTS}")
        return None
    return content


def _texts_by_id(content: dict) -> dict[str, Any]:
    if "annotations" in content and "images" in content:
        return _coco_texts(content)
    if isinstance(content.get("images"), list):  # Karpathy's
        return {
            Path(image["filename"]).stem: [sentence["raw"] for sentence in image["sentences"]]
            for image in content["images"]
        }
    return {image_id: [texts] if isinstance(texts, str) else texts for image_id, texts in content.items()}


def _coco_texts(content: dict) -> dict[str, list[str]]:
    image_ids = {image["id"]: Path(image["file_name"]).stem for image in content["images"]}
    texts: dict[str, list[str]] = {image_id: [] for image_id in image_ids.values()}
    for annotation in content["annotations"]:
        texts[image_ids[annotation["image_id"]]].append(annotation["caption"])
    return texts
