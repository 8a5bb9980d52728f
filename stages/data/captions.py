"""Read captions by image ID from JSON, in the layouts of published data sets."""

import json
import re
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from stages.core.messages import quote_value
from stages.data.files import require_regular_file
from stages.data.manifest import Problems

LAYOUTS = (
    "{id: caption}, {id: [captions]}, COCO's {images, annotations} or Karpathy's {images: [{filename, sentences}]}"
)

EXPECTED = "expected a caption or a list of captions, none empty"
CONTROL_CHARACTERS = re.compile(r"[\x00-\x1f\x7f-\x9f]")
SURROGATES = re.compile("[\ud800-\udfff]")  # JSON can escape half of a character, which cannot be written


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
        for image_id, texts in _texts_by_id(content, path, problems).items():
            if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
                problems.add(path, f"{quote_value(image_id)} holds {quote_value(texts)}; {EXPECTED}")
                continue
            cleaned = tuple(_clean(text) for text in texts)
            if not all(cleaned):
                problems.add(path, f"{quote_value(image_id)} holds {quote_value(texts)}; {EXPECTED}")
            elif any(SURROGATES.search(text) for text in cleaned):
                problems.add(path, f"{quote_value(image_id)} holds half of a surrogate pair: {quote_value(texts)}")
            else:
                captions[image_id] = cleaned
    return captions


def _clean(text: str) -> str:
    """Return a caption in one line: some of COCO's have line breaks. Escape sequences must not reach a terminal."""
    return " ".join(CONTROL_CHARACTERS.sub(" ", text).split())


@contextmanager
def collect_layout_errors(path: Path, problems: Problems) -> Iterator[None]:
    """Turn the errors of reading missing keys and wrong types into a problem of `path`."""
    try:
        yield
    except (KeyError, TypeError, AttributeError) as error:
        reason = f"{type(error).__name__} {error}"
        problems.add(path, f"is in neither COCO's nor Karpathy's layout: {reason:.100}")


def read_json(path: Path, problems: Problems) -> dict | None:
    """Return the object in a JSON file; None and a problem if there is none, or a key is listed twice."""
    try:
        require_regular_file(path)
        # Bytes: a byte order mark is accepted.
        content = json.loads(path.read_bytes(), object_pairs_hook=_unique_keys)
    except RecursionError:
        problems.add(path, "not valid JSON: nested too deeply")
        return None
    except ValueError as error:  # of the encoding, too
        problems.add(path, f"not valid JSON: {error}")
        return None
    except OSError as error:
        problems.add(path, error.strerror or error)
        return None
    if not isinstance(content, dict):
        problems.add(path, f"holds a {type(content).__name__}; expected {LAYOUTS}")
        return None
    return content


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return a JSON object as a dictionary; `json` itself would keep the last of equal keys."""
    content = dict(pairs)
    if len(content) < len(pairs):
        key, count = Counter(key for key, _ in pairs).most_common(1)[0]
        raise ValueError(f"the key {quote_value(key)} is listed {count} times in an object")
    return content


def _texts_by_id(content: dict, path: Path, problems: Problems) -> dict[str, Any]:
    if "annotations" in content and "images" in content:
        return _coco_texts(content, path, problems)
    if isinstance(content.get("images"), list):  # Karpathy's
        _check_unique([Path(image["filename"]).stem for image in content["images"]], "image ID", path, problems)
        return {
            Path(image["filename"]).stem: [sentence["raw"] for sentence in image["sentences"]]
            for image in content["images"]
        }
    return {image_id: [texts] if isinstance(texts, str) else texts for image_id, texts in content.items()}


def _coco_texts(content: dict, path: Path, problems: Problems) -> dict[str, list[str]]:
    _check_unique([image["id"] for image in content["images"]], "id", path, problems)
    _check_unique([Path(image["file_name"]).stem for image in content["images"]], "image ID", path, problems)
    image_ids = {image["id"]: Path(image["file_name"]).stem for image in content["images"]}
    texts: dict[str, list[str]] = {image_id: [] for image_id in image_ids.values()}
    for annotation in content["annotations"]:
        texts[image_ids[annotation["image_id"]]].append(annotation["caption"])
    return texts


def _check_unique(values: list, key: str, path: Path, problems: Problems) -> None:
    """Add a problem for every value that two images share: captions of the one would become those of the other."""
    for value, count in Counter(values).items():
        if count > 1:
            problems.add(path, f"{count} images have the {key} {quote_value(value)}")
