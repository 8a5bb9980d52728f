"""What every scene holds, beside its picture: the truth that captions are judged by."""

import csv
from dataclasses import astuple, fields
from pathlib import Path

from stages.core.atomic import atomic_write
from stages.data.scenes.scene import SceneObject

NAME = "objects.csv"  # a row a thing, in the order they were painted


def write_objects(root: Path, things: dict[str, tuple[SceneObject, ...]]) -> None:
    """Write the things of every image id."""
    with atomic_write(root / NAME) as beside, beside.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["image_id", *(field.name for field in fields(SceneObject))])
        writer.writerows([image_id, *astuple(thing)] for image_id, held in things.items() for thing in held)


def read_objects(root: Path) -> dict[str, tuple[SceneObject, ...]]:
    """The things of every image id; empty where the source does not tell."""
    path = root / NAME
    if not path.is_file():
        return {}
    found: dict[str, tuple[SceneObject, ...]] = {}
    with path.open(newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            image_id = row.pop("image_id")
            values = {field.name: field.type(row[field.name]) for field in fields(SceneObject)}
            found[image_id] = (*found.get(image_id, ()), SceneObject(**values))
    return found
