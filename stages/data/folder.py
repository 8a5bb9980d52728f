"""Any directory in PASCAL VOC's layout.

JPEGImages/ID.jpg (or .jpeg, .png, .webp, .bmp, .tif)    SegmentationClass/ID.png
ImageSets/Segmentation/train.txt, val.txt                one id a line
classes.txt     optional: names of mask values 0, 1, ... one a line
captions.json   optional: {id: caption or list of captions}
labels.csv      optional: image_id,label with a name or a number for a label
licence.txt     optional: one line on whose the images are
"""

import csv
import json
from itertools import chain
from pathlib import Path

from stages.data.images import SUFFIXES
from stages.data.manifest import SPLITS, Faults, Manifest, Row, validate
from stages.stage import InputError


def read_folder(root: Path, classes: tuple[str, ...] = ()) -> Manifest:
    """The validated manifest of a VOC-like directory; raises `InputError` listing all that is wrong with it.

    `classes` names the mask values where the directory does not.
    """
    if not (root / "JPEGImages").is_dir():
        raise InputError(f"{root}: no JPEGImages/ here; expected VOC's layout (see stages/data/folder.py)")
    faults = Faults()
    images, masks = _by_stem(root / "JPEGImages"), _by_stem(root / "SegmentationClass")
    listed = {split: _ids(root / "ImageSets" / "Segmentation" / f"{split}.txt", faults) for split in SPLITS}
    captions, (labels, label_names) = _captions(root, faults), _labels(root, set(chain(*listed.values())), faults)
    rows = []
    for split, image_ids in listed.items():
        for image_id in image_ids:
            image = images.get(image_id, root / "JPEGImages" / f"{image_id}.jpg")
            mask = masks.get(image_id, root / "SegmentationClass" / f"{image_id}.png")
            told, label = captions.get(image_id, ()), labels.get(image_id)
            rows.append(Row(image_id, split, str(image), str(mask), told, label))
    named = _lines(root / "classes.txt", faults)
    if "" in named:
        faults.add(root / "classes.txt", f"line {named.index('') + 1} is empty; a line is a mask value's name")
    licence = " ".join(_lines(root / "licence.txt", faults)) or "unknown"
    return validate(Manifest(tuple(rows), str(root), named or classes, label_names, licence), faults)


def _by_stem(folder: Path) -> dict[str, Path]:
    if not folder.is_dir():
        return {}
    return {path.stem: path for path in sorted(folder.iterdir()) if path.suffix.lower() in SUFFIXES}


def _text(path: Path, faults: Faults) -> str:
    """The text of a file; "" with a fault added where it is no UTF-8 (a byte order mark is fine)."""
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as fault:
        faults.add(path, f"no UTF-8: {fault.reason} at byte {fault.start}")
        return ""


def _ids(path: Path, faults: Faults) -> list[str]:
    if not path.is_file():
        faults.add(path, "missing")
        return []
    return [line.split()[0] for line in _lines(path, faults) if line]


def _lines(path: Path, faults: Faults) -> tuple[str, ...]:
    """Lines without the space around them, none after the last one with text; () where there is no file."""
    if not path.is_file():
        return ()
    return tuple(line.strip() for line in _text(path, faults).rstrip().splitlines())


def _captions(root: Path, faults: Faults) -> dict[str, tuple[str, ...]]:
    path = root / "captions.json"
    if not path.is_file():
        return {}
    try:
        told = json.loads(_text(path, faults) or "{}")
    except ValueError as fault:
        faults.add(path, f"no JSON: {fault}")
        return {}
    if not isinstance(told, dict):
        faults.add(path, f"holds a {type(told).__name__}; expected {{id: caption or list of captions}}")
        return {}
    captions = {}
    for image_id, value in told.items():
        value = [value] if isinstance(value, str) else value
        if isinstance(value, list) and all(isinstance(one, str) and one.strip() for one in value):
            captions[image_id] = tuple(value)
        else:
            faults.add(path, f"'{image_id}' holds {value!r:.60}; expected a caption or a list of captions, none empty")
    return captions


def _labels(root: Path, listed: set[str], faults: Faults) -> tuple[dict[str, int], tuple[str, ...]]:
    """Label index by image id, of the images that are `listed`, and the names behind the indices, sorted."""
    path = root / "labels.csv"
    if not path.is_file():
        return {}, ()
    table = csv.DictReader(_text(path, faults).splitlines())
    if not {"image_id", "label"} <= set(table.fieldnames or ()):
        faults.add(path, f"columns {table.fieldnames}; expected image_id,label")
        return {}, ()
    by_id = {row["image_id"]: (row["label"] or "").strip() for row in table if row["image_id"] in listed}
    for image_id, name in by_id.items():
        if not name:
            faults.add(path, f"'{image_id}' has an empty label")
    names = tuple(sorted(set(by_id.values()), key=_numbers_first))
    return {image_id: names.index(name) for image_id, name in by_id.items()}, names


def _numbers_first(name: str) -> tuple[bool, int, str]:
    return (not name.isdigit(), int(name) if name.isdigit() else 0, name)
