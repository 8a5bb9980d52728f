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
from pathlib import Path

from stages.data.manifest import SPLITS, Faults, Manifest, Row, validate
from stages.stage import InputError

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff")


def read_folder(root: Path) -> Manifest:
    """The validated manifest of a VOC-like directory; raises `InputError` listing all that is wrong with it."""
    lists = {split: root / "ImageSets" / "Segmentation" / f"{split}.txt" for split in SPLITS}
    if not root.is_dir() or not (root / "JPEGImages").is_dir():
        raise InputError(f"{root}: no JPEGImages/ here; expected VOC's layout (see stages/data/folder.py)")
    faults = Faults()
    images = _by_stem(root / "JPEGImages")
    masks = _by_stem(root / "SegmentationClass")
    captions, (labels, label_names) = _captions(root, faults), _labels(root, faults)
    rows = []
    for split, path in lists.items():
        for image_id in _ids(path, faults):
            image = images.get(image_id, root / "JPEGImages" / f"{image_id}.jpg")
            mask = masks.get(image_id, root / "SegmentationClass" / f"{image_id}.png")
            told, label = captions.get(image_id, ()), labels.get(image_id)
            rows.append(Row(image_id, split, str(image), str(mask), told, label))
    classes = _lines(root / "classes.txt")
    licence = " ".join(_lines(root / "licence.txt")) or "unknown"
    return validate(Manifest(tuple(rows), str(root), classes, label_names, licence), faults)


def _by_stem(folder: Path) -> dict[str, Path]:
    if not folder.is_dir():
        return {}
    return {path.stem: path for path in sorted(folder.iterdir()) if path.suffix.lower() in SUFFIXES}


def _ids(path: Path, faults: Faults) -> list[str]:
    if not path.is_file():
        faults.add(path, "missing")
        return []
    return [line.split()[0] for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]


def _lines(path: Path) -> tuple[str, ...]:
    if not path.is_file():
        return ()
    return tuple(line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip())


def _captions(root: Path, faults: Faults) -> dict[str, tuple[str, ...]]:
    path = root / "captions.json"
    if not path.is_file():
        return {}
    try:
        told = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as fault:
        faults.add(path, f"no JSON: {fault}")
        return {}
    captions = {}
    for image_id, value in told.items() if isinstance(told, dict) else [("", told)]:
        value = [value] if isinstance(value, str) else value
        if isinstance(value, list) and all(isinstance(one, str) and one.strip() for one in value):
            captions[image_id] = tuple(value)
        else:
            faults.add(path, f"'{image_id}' holds {value!r:.60}; expected a caption or a list of captions, none empty")
    return captions


def _labels(root: Path, faults: Faults) -> tuple[dict[str, int], tuple[str, ...]]:
    """Label index by image id, and the names behind the indices, sorted."""
    path = root / "labels.csv"
    if not path.is_file():
        return {}, ()
    with path.open(encoding="utf-8", newline="") as file:
        table = csv.DictReader(file)
        if not {"image_id", "label"} <= set(table.fieldnames or ()):
            faults.add(path, f"columns {table.fieldnames}; expected image_id,label")
            return {}, ()
        by_id = {row["image_id"]: (row["label"] or "").strip() for row in table}
    for image_id, name in by_id.items():
        if not name:
            faults.add(path, f"'{image_id}' has an empty label")
    names = tuple(sorted(set(by_id.values()), key=_numbers_first))
    return {image_id: names.index(name) for image_id, name in by_id.items()}, names


def _numbers_first(name: str) -> tuple[bool, int, str]:
    return (not name.isdigit(), int(name) if name.isdigit() else 0, name)
