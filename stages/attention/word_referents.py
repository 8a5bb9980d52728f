"""Which object each word of a caption refers to, as far as masks can tell."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from stages.attention.words import END, Word
from stages.data.images import read_mask
from stages.data.manifest import Manifest, Row
from stages.data.scenes.annotations import read_objects
from stages.data.scenes.captions import mentions
from stages.data.scenes.scene import CLASSES, SceneObject
from stages.data.voc import BACKGROUND

CLASS, COLOR, ENDING, OTHER = "class", "color", "end", "other"  # kinds of words


@dataclass(frozen=True)
class Referent:
    """A word's kind; `label` is the mask value of its object, or None if it is compared with all objects."""

    kind: str
    label: int | None = None


def referents_in_scene(words: Sequence[str], objects: tuple[SceneObject, ...]) -> list[Referent | None]:
    """Every word's referent in a generated scene; None for a class, and its color, that the scene does not contain."""
    referents: list[Referent | None] = [Referent(ENDING if word == END else OTHER) for word in words]
    present = {scene_object.name for scene_object in objects}
    for mention in mentions(words):
        label = CLASSES.index(mention.name)
        in_scene = mention.name in present
        referents[mention.name_index] = Referent(CLASS, label) if in_scene else None
        if mention.color_index is not None:
            referents[mention.color_index] = Referent(COLOR, label) if in_scene else None
    return referents


def referents_by_class_name(words: Sequence[str], classes: tuple[str, ...], present: set[int]) -> list[Referent | None]:
    """Every word's referent by comparing it with the names of the mask classes; `present` are the mask's labels."""
    labels = {name.lower(): label for label, name in enumerate(classes) if name != BACKGROUND}
    referents: list[Referent | None] = []
    for word in words:
        label = labels.get(word.lower())
        if label is None:
            referents.append(Referent(ENDING if word == END else OTHER))
        else:
            referents.append(Referent(CLASS, label) if label in present else None)
    return referents


class ReferentFinder:
    """Finds the referents of a caption's words, from scene annotations if there are any, else from class names."""

    def __init__(self, manifest: Manifest):
        self.classes = manifest.classes
        self.objects = read_objects(Path(manifest.source))
        self.background = self.classes.index(BACKGROUND) if BACKGROUND in self.classes else None

    def find(self, row: Row, words: list[Word]) -> list[Referent | None]:
        """The referent of each word in the image of `row`, which has a mask."""
        texts = [word.text for word in words]
        if row.image_id in self.objects:
            return referents_in_scene(texts, self.objects[row.image_id])
        assert row.mask is not None
        present = set(np.unique(read_mask(Path(row.mask))).tolist())
        return referents_by_class_name(texts, self.classes, present)
