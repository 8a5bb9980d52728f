"""Oxford-IIIT Pet (Parkhi et al., 2012): images of 37 breeds, with one animal and one trimap per image.

images/Abyssinian_1.jpg ...                Breed_number.jpg
annotations/trainval.txt, test.txt         per line: image name, class from 1, and two more columns; here train and val
annotations/trimaps/Abyssinian_1.png ...   1 animal, 2 background, 3 uncertain
"""

import re
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from tqdm import tqdm

from stages.core.messages import quote_value
from stages.data.image_ids import image_id_problem
from stages.data.images import read_mask
from stages.data.manifest import IMAGE_ERRORS, Manifest, Problems, Row, image_problem, read_text_file, validate_manifest
from stages.data.voc import BACKGROUND, VOID, save_mask

LISTS = {"train": "trainval.txt", "val": "test.txt"}
CLASSES = (BACKGROUND, "animal")
MASK_VALUES = np.full(256, VOID, np.uint8)  # by trimap value
MASK_VALUES[1] = CLASSES.index("animal")
MASK_VALUES[2] = CLASSES.index(BACKGROUND)
LICENSE = "CC BY-SA 4.0"


def read_pets(images: Path, annotations: Path, masks: Path, expected: Mapping[str, int]) -> Manifest:
    """Return the validated manifest; write masks with VOC's values to the folder `masks`.

    `expected` is the number of images by split. Raises `InputError` listing all problems.
    """
    problems = Problems()
    rows = []
    names: dict[int, str] = {}  # breeds by label
    for split, list_name in LISTS.items():
        path = annotations / list_name
        entries = _read_entries(path, problems)
        if len(entries) != expected[split]:
            problems.add(path, f"{len(entries)} images; expected {expected[split]}")
        for image_id, number in entries:
            label = number - 1
            name = image_id.rpartition("_")[0].replace("_", " ")
            if names.setdefault(label, name) != name:
                problems.add(path, f"class {number} is '{names[label]}', but '{name}' at {image_id}")
            image = images / f"{image_id}.jpg"
            mask = masks / f"{image_id}.png"
            rows.append(Row(image_id, split, str(image), str(mask), label=label))
    labels = tuple(names[label] for label in sorted(names))
    if sorted(names) != list(range(len(names))):
        numbers = [label + 1 for label in sorted(names)]
        problems.add(annotations, f"classes {numbers}; expected 1 to {len(names)}")
    masks.mkdir(parents=True, exist_ok=True)
    for row in tqdm(rows, "read trimaps", unit="image", mininterval=1):
        trimap = annotations / "trimaps" / f"{row.image_id}.png"
        try:
            values = read_mask(trimap)
        except IMAGE_ERRORS as error:
            problems.add(trimap, image_problem(error))
            continue
        save_mask(MASK_VALUES[values], masks / f"{row.image_id}.png")
    return validate_manifest(Manifest(tuple(rows), str(images.parent), CLASSES, labels, LICENSE), problems)


def _read_entries(path: Path, problems: Problems) -> list[tuple[str, int]]:
    """Return the image name and class number of every line. Only the first invalid line is a problem of its own."""
    if not path.is_file():
        problems.add(path, "missing")
        return []
    entries = []
    invalid = []
    for line in read_text_file(path, problems).split("\n"):
        columns = line.split()
        if not columns or line.startswith("#"):
            continue
        if len(columns) > 1 and re.fullmatch("0*[1-9][0-9]{0,3}", columns[1]) and not image_id_problem(columns[0]):
            entries.append((columns[0], int(columns[1])))
        else:
            invalid.append(" ".join(columns))
    if invalid:
        problems.add(path, f"{quote_value(invalid[0])}: expected an image name and a class number from 1")
    return entries
