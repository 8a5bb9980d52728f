"""Any folder in PASCAL VOC's layout, and the `folder` source. Captioned folders are read by `captioned_folder`.

JPEGImages/ID.jpg (or .jpeg, .png, .webp, .bmp, .tif)
SegmentationClass/ID.png                                 optional
ImageSets/Segmentation/train.txt, val.txt                one ID per line
classes.txt     optional: names of mask values 0, 1, ..., one per line
captions.json   optional: {id: caption or list of captions}, COCO's or Karpathy's layout
labels.csv      optional: columns image_id and label; labels are names or numbers
license.txt     optional: one line about the license of the images
"""

import csv
from collections.abc import Mapping
from pathlib import Path

from stages.core.messages import join_names
from stages.data.captioned_folder import read_captioned_folder
from stages.data.captions import read_captions
from stages.data.images import is_image
from stages.data.manifest import SPLITS, Manifest, Problems, Row, read_text_file, validate_manifest
from stages.params.profiles import Folder


class FolderSource:
    """A folder of the user's own images, for all tasks."""

    def __init__(self, params: Folder) -> None:
        self.params = params

    def read(self) -> Manifest:
        return read_folder(self.params.path)

    def read_labeled(self, manifest: Manifest) -> Manifest:
        return manifest


def read_folder(
    root: Path,
    classes: tuple[str, ...] = (),
    captions: Path | None = None,
    expected: Mapping[str, int] | None = None,
    license: str = "unknown",
) -> Manifest:
    """Return the validated manifest of a folder; raises `InputError` listing all problems.

    `classes` and `license` are used if the folder has no classes.txt and license.txt. `captions` is a file to read in
    place of the folder's captions.json; it must have captions of every image. `expected` is the number of images by
    split.
    """
    if not (root / "JPEGImages").is_dir():
        return read_captioned_folder(root)
    problems = Problems()
    image_ids = {split: _read_ids(root, split, problems) for split in SPLITS}
    for split, count in (expected or {}).items():
        if len(image_ids[split]) != count:
            problems.add(_list_path(root, split), f"{len(image_ids[split])} images; expected {count}")
    listed_ids = {image_id for split_ids in image_ids.values() for image_id in split_ids}
    captions_by_id: dict[str, tuple[str, ...]] = {}
    if captions is not None:
        captions_by_id = read_captions(captions, problems)
        missing = sorted(image_id for image_id in listed_ids if not captions_by_id.get(image_id))
        if missing:
            problems.add(captions, f"no caption for {join_names(missing)}")
    elif (root / "captions.json").is_file():
        captions_by_id = read_captions(root / "captions.json", problems)
    labels, label_names = _read_labels(root / "labels.csv", listed_ids, problems)
    images = _images_by_id(root / "JPEGImages")
    masks = _images_by_id(root / "SegmentationClass")
    has_masks = (root / "SegmentationClass").is_dir()
    rows = []
    for split, split_ids in image_ids.items():
        for image_id in split_ids:
            # The expected paths of missing files: validation reports them.
            image = images.get(image_id, root / "JPEGImages" / f"{image_id}.jpg")
            mask = masks.get(image_id, root / "SegmentationClass" / f"{image_id}.png")
            mask_path = str(mask) if has_masks else None
            captions_of_image = captions_by_id.get(image_id, ())
            rows.append(Row(image_id, split, str(image), mask_path, captions_of_image, labels.get(image_id)))
    class_names = _read_lines(root / "classes.txt", problems)
    if "" in class_names:
        line = class_names.index("") + 1
        problems.add(root / "classes.txt", f"line {line} is empty; each line names a mask value")
    license = " ".join(_read_lines(root / "license.txt", problems)) or license
    return validate_manifest(Manifest(tuple(rows), str(root), class_names or classes, label_names, license), problems)


def _images_by_id(folder: Path) -> dict[str, Path]:
    paths = sorted(folder.glob("*"))  # none if there is no such folder
    return {path.stem: path for path in paths if is_image(path)}


def _list_path(root: Path, split: str) -> Path:
    return root / "ImageSets" / "Segmentation" / f"{split}.txt"


def _read_ids(root: Path, split: str, problems: Problems) -> list[str]:
    """Return the first word of every line of a split's list."""
    path = _list_path(root, split)
    if not path.is_file():
        problems.add(path, "missing")
    return [line.split()[0] for line in _read_lines(path, problems) if line]


def _read_lines(path: Path, problems: Problems) -> tuple[str, ...]:
    """Return a file's lines, stripped and without empty lines at the end; () if the file is missing."""
    if not path.is_file():
        return ()
    return tuple(line.strip() for line in read_text_file(path, problems).rstrip().splitlines())


def _read_labels(path: Path, listed_ids: set[str], problems: Problems) -> tuple[dict[str, int], tuple[str, ...]]:
    """Return label indices by image ID, and the labels' names in the order of their indices: numbers before words."""
    if not path.is_file():
        return {}, ()
    table = csv.DictReader(read_text_file(path, problems).splitlines())
    if not {"image_id", "label"} <= set(table.fieldnames or ()):
        problems.add(path, f"columns {table.fieldnames}; expected image_id,label")
        return {}, ()
    label_by_id = {}
    for row in table:
        if row["image_id"] in listed_ids:
            label_by_id[row["image_id"]] = (row["label"] or "").strip()  # None in a short row
    for image_id, label in label_by_id.items():
        if not label:
            problems.add(path, f"'{image_id}' has an empty label")
    names = tuple(sorted(set(label_by_id.values()), key=_numeric_order))
    return {image_id: names.index(label) for image_id, label in label_by_id.items()}, names


def _numeric_order(name: str) -> tuple[bool, int, str]:
    return not name.isdigit(), int(name) if name.isdigit() else 0, name
