"""`objects.csv`: the objects of every scene, against which captions are evaluated."""

import csv
from collections import defaultdict
from dataclasses import astuple, fields
from pathlib import Path
from typing import get_type_hints

from stages.core.atomic import atomic_write
from stages.data.scenes.scene import SceneObject

FILE_NAME = "objects.csv"  # one row per object, in painting order


def write_objects(root: Path, objects: dict[str, tuple[SceneObject, ...]]) -> None:
    """Write the objects of every image ID."""
    with atomic_write(root / FILE_NAME) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["image_id", *(field.name for field in fields(SceneObject))])
        for image_id, scene_objects in objects.items():
            writer.writerows([image_id, *astuple(obj)] for obj in scene_objects)


def read_objects(root: Path) -> dict[str, tuple[SceneObject, ...]]:
    """Return the objects by image ID; an empty dict for sources without `objects.csv`."""
    path = root / FILE_NAME
    if not path.is_file():
        return {}
    types = get_type_hints(SceneObject)
    objects = defaultdict(list)
    with path.open(newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            values = {name: convert(row[name]) for name, convert in types.items()}
            objects[row["image_id"]].append(SceneObject(**values))
    return {image_id: tuple(scene_objects) for image_id, scene_objects in objects.items()}
