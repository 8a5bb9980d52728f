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
import io
import re
from collections.abc import Collection, Mapping
from os.path import lexists
from pathlib import Path

from stages.core.messages import escape_controls, join_names, quote_value
from stages.data.captioned_folder import read_captioned_folder
from stages.data.captions import read_captions
from stages.data.image_ids import image_id_problem
from stages.data.images import is_image
from stages.data.manifest import (
    EMPTY_NAME,
    SPLITS,
    Manifest,
    Problems,
    Row,
    name_problem,
    read_text_file,
    validate_manifest,
)
from stages.params.profiles import Folder

MAX_LICENSE_LENGTH = 1000


class FolderSource:
    """A folder of the user's own images, for all tasks."""

    def __init__(self, params: Folder) -> None:
        self.params = params

    def read(self) -> Manifest:
        return read_folder(self.params.path, max_pixels=self.params.max_pixels)

    def read_labeled(self, manifest: Manifest) -> Manifest:
        return manifest


def read_folder(
    root: Path,
    classes: tuple[str, ...] = (),
    captions: Path | None = None,
    expected: Mapping[str, int] | None = None,
    license: str = "unknown",
    max_pixels: int | None = None,
) -> Manifest:
    """Return the validated manifest of a folder; raises `InputError` listing all problems.

    `classes` and `license` are used if the folder has no classes.txt and license.txt. `captions` is a file to read in
    place of the folder's captions.json; it must have captions of every image. `expected` is the number of images by
    split. Images of more than `max_pixels` are refused.
    """
    if not (root / "JPEGImages").is_dir():
        return read_captioned_folder(root, max_pixels)
    problems = Problems()
    image_ids = {split: _read_ids(_list_path(root, split), problems) for split in SPLITS}
    for split, count in (expected or {}).items():
        if len(image_ids[split]) != count:
            problems.add(_list_path(root, split), f"{len(image_ids[split])} images; expected {count}")
    listed_ids = {image_id for split_ids in image_ids.values() for image_id in split_ids}
    captions_by_id = _read_captions(captions or root / "captions.json", listed_ids, captions is not None, problems)
    labels, label_names = _read_labels(root / "labels.csv", listed_ids, problems)
    images = _images_by_id(root / "JPEGImages", listed_ids, problems)
    masks = _images_by_id(root / "SegmentationClass", listed_ids, problems)
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
    class_names = _read_classes(root / "classes.txt", problems)
    license = _read_license(root / "license.txt", problems) or license
    manifest = Manifest(tuple(rows), str(root), class_names or classes, label_names, license)
    return validate_manifest(manifest, problems, max_pixels)


def _images_by_id(folder: Path, listed_ids: set[str], problems: Problems) -> dict[str, Path]:
    """Return the images in a folder by ID; a listed ID with two files, such as a.jpg and a.png, is a problem."""
    paths: dict[str, Path] = {}
    for path in sorted(folder.glob("*")):  # none if there is no such folder
        if not is_image(path):
            continue
        first = paths.setdefault(path.stem, path)
        if first != path and path.stem in listed_ids:
            problems.add(folder, f"{first.name} and {path.name} have the same image ID; remove all but one of them")
    return paths


def _list_path(root: Path, split: str) -> Path:
    return root / "ImageSets" / "Segmentation" / f"{split}.txt"


def _read_ids(path: Path, problems: Problems) -> list[str]:
    """Return the image IDs of a split's list. In lists of VOC's classes, numbers follow the ID."""
    if not lexists(path):
        problems.add(path, "missing")
    image_ids = []
    for number, line in enumerate(_read_lines(path, problems), start=1):
        if not line:
            continue
        image_id, *columns = line.split()
        problem = image_id_problem(image_id)
        if problem:
            problems.add(path, f"line {number}: {quote_value(image_id)}: {problem}")
        elif any(re.fullmatch("[+-]?[0-9]+", column) is None for column in columns):
            expected = "expected an image ID without spaces; only numbers may follow it"
            problems.add(path, f"line {number}: {quote_value(line)}: {expected}")
        else:
            image_ids.append(image_id)
    return image_ids


def _read_lines(path: Path, problems: Problems) -> tuple[str, ...]:
    """Return a file's lines, stripped and without empty lines at the end; () if the file is missing."""
    if not lexists(path):
        return ()
    text = read_text_file(path, problems).rstrip()
    # Not `splitlines`, which also splits at form feeds and other control characters.
    return tuple(line.strip() for line in text.split("\n")) if text else ()


def _read_classes(path: Path, problems: Problems) -> tuple[str, ...]:
    names = _read_lines(path, problems)
    for number, name in enumerate(names, start=1):
        problem = name_problem(name)
        if problem == EMPTY_NAME:
            problems.add(path, f"line {number} is empty; each line names a mask value")
        elif problem:
            problems.add(path, f"line {number}: {problem}: {quote_value(name)}")
    return names


def _read_license(path: Path, problems: Problems) -> str:
    license = " ".join(_read_lines(path, problems))
    if len(license) > MAX_LICENSE_LENGTH:
        problems.add(path, f"{len(license)} characters; expected a line of at most {MAX_LICENSE_LENGTH}")
    return escape_controls(license)


def _read_captions(
    path: Path, listed_ids: set[str], is_required: bool, problems: Problems
) -> dict[str, tuple[str, ...]]:
    """Return captions by image ID. If they are required, every listed image must have one."""
    if not is_required and not lexists(path):
        return {}
    captions = read_captions(path, problems)
    if is_required:
        missing = sorted(image_id for image_id in listed_ids if not captions.get(image_id))
        if missing:
            problems.add(path, f"no caption for {join_names(missing)}")
    else:
        _check_listed(path, captions, listed_ids, problems)
    return captions


def _read_labels(path: Path, listed_ids: set[str], problems: Problems) -> tuple[dict[str, int], tuple[str, ...]]:
    """Return label indices by image ID, and the labels' names in the order of their indices: numbers before words."""
    if not lexists(path):
        return {}, ()
    labels: dict[str, str] = {}
    # Strict: without it, an unclosed quote makes the rest of the file one label.
    table = csv.DictReader(io.StringIO(read_text_file(path, problems), newline=""), strict=True)
    try:
        columns = table.fieldnames or ()
        if any(columns.count(name) != 1 for name in ("image_id", "label")):
            problems.add(path, f"columns {quote_value(columns)}; expected image_id,label")
            return {}, ()
        for row in table:
            _add_label(labels, row, f"{path}: line {table.line_num}", problems)
    except csv.Error as error:
        # `line_num` is that of the last valid row. An unclosed quote reaches the end of the file.
        problems.add(path, f"line {table.line_num + 1}: not valid CSV: {error}")
        return {}, ()
    _check_listed(path, labels, listed_ids, problems)
    labels = {image_id: label for image_id, label in labels.items() if image_id in listed_ids}
    names = tuple(sorted(set(labels.values()), key=_numeric_order))
    indices = {name: index for index, name in enumerate(names)}
    return {image_id: indices[label] for image_id, label in labels.items()}, names


def _add_label(labels: dict[str, str], row: dict, location: str, problems: Problems) -> None:
    """Add a row of labels.csv to `labels`."""
    if None in row:
        problems.add(location, f"more cells than columns: {quote_value(row[None])}")
        return
    image_id = row["image_id"].strip()
    label = (row["label"] or "").strip()  # None in a short row
    problem = name_problem(label)
    if problem == EMPTY_NAME:
        problems.add(location, f"{quote_value(image_id)} has an empty label")
    elif problem:
        problems.add(location, f"{problem}: {quote_value(label)}")
    elif labels.setdefault(image_id, label) != label:
        first = quote_value(labels[image_id])
        problems.add(location, f"{quote_value(image_id)} has the label {first} and the label {quote_value(label)}")


def _check_listed(path: Path, image_ids: Collection[str], listed_ids: set[str], problems: Problems) -> None:
    """Print how many image IDs no split lists: the file may describe a larger data set. All of them are a problem."""
    unlisted = [image_id for image_id in image_ids if image_id not in listed_ids]
    if not unlisted:
        return
    examples = join_names([quote_value(image_id) for image_id in unlisted], limit=3)
    if len(unlisted) == len(image_ids):
        problems.add(path, f"no split lists any of its image IDs, which are file names without suffix: {examples}")
    else:
        print(f"{path}: skipped {len(unlisted)} of {len(image_ids)} image IDs, which no split lists: {examples}")


def _numeric_order(name: str) -> tuple[bool, int, str]:
    is_number = re.fullmatch("[0-9]{1,18}", name) is not None  # not `isdigit`: it is true of '²'
    return not is_number, int(name) if is_number else 0, name
