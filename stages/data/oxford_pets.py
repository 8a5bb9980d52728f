"""Oxford-IIIT Pet (Parkhi et al., 2012): 37 breeds, an animal a picture, a trimap a picture.

images/Abyssinian_1.jpg ...                Breed_number.jpg
annotations/trainval.txt, test.txt         name, class from 1, and two more columns a line; here train and val
annotations/trimaps/Abyssinian_1.png ...   1 animal, 2 background, 3 neither for sure
"""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

from stages.core.atomic import atomic_write
from stages.data.images import read_mask
from stages.data.manifest import IMAGE_ERRORS, Manifest, Problems, Row, read_text_file, validate_manifest
from stages.data.voc import BACKGROUND, COLOR_MAP, VOID

LISTS = {"train": "trainval.txt", "val": "test.txt"}
CLASSES = (BACKGROUND, "animal")
MEANT = np.full(256, VOID, np.uint8)  # by a trimap's values
MEANT[[1, 2]] = CLASSES.index("animal"), CLASSES.index(BACKGROUND)
LICENSE = "CC BY-SA 4.0"


def read_pets(images: Path, annotations: Path, masks: Path, expected: Mapping[str, int]) -> Manifest:
    """The validated manifest; masks in VOC's values are written to the folder `masks`.

    Raises `InputError` listing all that is wrong, numbers of images other than `expected` among it.
    """
    faults, rows, names = Problems(), [], {}
    for split, file in LISTS.items():
        lines = _lines(annotations / file, faults)
        if len(lines) != expected[split]:
            faults.add(annotations / file, f"{len(lines)} images; expected {expected[split]}")
        for image_id, number in lines:
            label, name = int(number) - 1, image_id.rpartition("_")[0].replace("_", " ")
            if names.setdefault(label, name) != name:
                faults.add(annotations / file, f"class {number} is '{names[label]}', and '{name}' at {image_id}")
            image = images / f"{image_id}.jpg"
            rows.append(Row(image_id, split, str(image), str(masks / f"{image_id}.png"), label=label))
    labels = tuple(names[index] for index in sorted(names))
    if sorted(names) != list(range(len(labels))):
        faults.add(annotations, f"classes {sorted(number + 1 for number in names)}; expected 1 to {len(labels)}")
    for row in tqdm(rows, "read trimaps", unit="image", mininterval=1):
        _write_mask(annotations / "trimaps" / f"{row.image_id}.png", Path(row.mask), faults)
    return validate_manifest(Manifest(tuple(rows), str(images.parent), CLASSES, labels, LICENSE), faults)


def _lines(path: Path, faults: Problems) -> list[tuple[str, str]]:
    """Name and class number a line."""
    if not path.is_file():
        faults.add(path, "missing")
        return []
    words = [line.split() for line in read_text_file(path, faults).splitlines() if not line.startswith("#")]
    wrong = [" ".join(one) for one in words if one and not (len(one) > 1 and one[1].isdecimal() and int(one[1]))]
    if wrong:
        faults.add(path, f"'{wrong[0]}' is no line of a name and a class")
    return [(one[0], one[1]) for one in words if one and " ".join(one) not in wrong]


def _write_mask(trimap: Path, mask: Path, faults: Problems) -> None:
    try:
        values = read_mask(trimap)
    except IMAGE_ERRORS as fault:
        faults.add(trimap, "missing" if isinstance(fault, FileNotFoundError) else fault)
        return
    made = Image.fromarray(MEANT[values], mode="P")
    made.putpalette(COLOR_MAP.tobytes())
    with atomic_write(mask) as beside:
        made.save(beside, format="PNG")
