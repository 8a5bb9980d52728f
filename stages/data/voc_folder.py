"""Any directory in PASCAL VOC's layout; one of captioned images goes to `captioned`.

JPEGImages/ID.jpg (or .jpeg, .png, .webp, .bmp, .tif)    SegmentationClass/ID.png
ImageSets/Segmentation/train.txt, val.txt                one id a line
classes.txt     optional: names of mask values 0, 1, ... one a line
captions.json   optional: {id: caption or list of captions}, COCO's or Karpathy's layout
labels.csv      optional: image_id,label with a name or a number for a label
license.txt     optional: one line on whose the images are
"""

import csv
from collections.abc import Mapping
from itertools import chain
from pathlib import Path

from stages.data.captioned_folder import read_captioned_folder
from stages.data.captions import read_captions
from stages.data.images import IMAGE_SUFFIXES
from stages.data.manifest import SPLITS, Manifest, Problems, Row, read_text_file, validate_manifest

NAMED = 12  # images that are named in a fault


def read_folder(
    root: Path,
    classes: tuple[str, ...] = (),
    captions: Path | None = None,
    expected: Mapping[str, int] | None = None,
    license: str = "unknown",
) -> Manifest:
    """The validated manifest of a VOC-like directory; raises `InputError` listing all that is wrong with it.

    `classes` names the mask values, and `license` says whose the images are, where the directory does not. `captions`
    is a file in place of the directory's, which must have every image; `expected` are the numbers of images of its
    splits.
    """
    if not (root / "JPEGImages").is_dir():
        return read_captioned_folder(root)
    faults = Problems()
    images, masks = _by_stem(root / "JPEGImages"), _by_stem(root / "SegmentationClass")
    masked = (root / "SegmentationClass").is_dir()
    listed = {split: _ids(root / "ImageSets" / "Segmentation" / f"{split}.txt", faults) for split in SPLITS}
    for split, count in (expected or {}).items():
        if len(listed[split]) != count:
            faults.add(root / f"ImageSets/Segmentation/{split}.txt", f"{len(listed[split])} images; expected {count}")
    told = _captions(root, captions, set(chain(*listed.values())), faults)
    labels, label_names = _labels(root, set(chain(*listed.values())), faults)
    rows = []
    for split, image_ids in listed.items():
        for image_id in image_ids:
            image = images.get(image_id, root / "JPEGImages" / f"{image_id}.jpg")
            mask = masks.get(image_id, root / "SegmentationClass" / f"{image_id}.png")
            where = str(mask) if masked else None
            rows.append(Row(image_id, split, str(image), where, told.get(image_id, ()), labels.get(image_id)))
    named = _lines(root / "classes.txt", faults)
    if "" in named:
        faults.add(root / "classes.txt", f"line {named.index('') + 1} is empty; a line is a mask value's name")
    license = " ".join(_lines(root / "license.txt", faults)) or license
    return validate_manifest(Manifest(tuple(rows), str(root), named or classes, label_names, license), faults)


def _by_stem(folder: Path) -> dict[str, Path]:
    if not folder.is_dir():
        return {}
    return {path.stem: path for path in sorted(folder.iterdir()) if path.suffix.lower() in IMAGE_SUFFIXES}


def _ids(path: Path, faults: Problems) -> list[str]:
    if not path.is_file():
        faults.add(path, "missing")
        return []
    return [line.split()[0] for line in _lines(path, faults) if line]


def _lines(path: Path, faults: Problems) -> tuple[str, ...]:
    """Lines without the space around them, none after the last one with text; () where there is no file."""
    if not path.is_file():
        return ()
    return tuple(line.strip() for line in read_text_file(path, faults).rstrip().splitlines())


def _captions(root: Path, asked: Path | None, listed: set[str], faults: Problems) -> dict[str, tuple[str, ...]]:
    """The directory's own captions, where it has some, or those that were asked for, of all images that are listed."""
    own = root / "captions.json"
    if asked is None:
        return read_captions(own, faults) if own.is_file() else {}
    told = read_captions(asked, faults)
    if bare := sorted(listed - {image_id for image_id, some in told.items() if some}):
        more = f" and {len(bare) - NAMED} more" if len(bare) > NAMED else ""
        faults.add(asked, f"no caption for {', '.join(bare[:NAMED])}{more}")
    return told


def _labels(root: Path, listed: set[str], faults: Problems) -> tuple[dict[str, int], tuple[str, ...]]:
    """Label index by image id, of the images that are `listed`, and the names behind the indices, sorted."""
    path = root / "labels.csv"
    if not path.is_file():
        return {}, ()
    table = csv.DictReader(read_text_file(path, faults).splitlines())
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
