"""What every scene holds, beside its picture: the truth that captions are judged by."""

import csv
from dataclasses import astuple, fields
from pathlib import Path

from stages.core.atomic import replacing
from stages.data.scenes.scene import Thing

NAME = "things.csv"  # a row a thing, in the order they were painted


def write_things(root: Path, things: dict[str, tuple[Thing, ...]]) -> None:
    """Write the things of every image id."""
    with replacing(root / NAME) as beside, beside.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["image_id", *(field.name for field in fields(Thing))])
        writer.writerows([image_id, *astuple(thing)] for image_id, held in things.items() for thing in held)


def read_things(root: Path) -> dict[str, tuple[Thing, ...]]:
    """The things of every image id; empty where the source does not tell."""
    path = root / NAME
    if not path.is_file():
        return {}
    found: dict[str, tuple[Thing, ...]] = {}
    with path.open(newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            image_id = row.pop("image_id")
            values = {field.name: field.type(row[field.name]) for field in fields(Thing)}
            found[image_id] = (*found.get(image_id, ()), Thing(**values))
    return found
