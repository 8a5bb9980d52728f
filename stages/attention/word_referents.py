"""Which of a caption's words name what, as far as masks can tell."""

from collections.abc import Sequence
from dataclasses import dataclass

from stages.attention.words import END
from stages.data.scenes.captions import mentions
from stages.data.scenes.scene import CLASSES, SceneObject
from stages.data.voc import BACKGROUND

CLASS, COLOR, ENDING, OTHER = "class", "color", "end", "other"  # kinds of words


@dataclass(frozen=True)
class Referent:
    """A word's kind; `label` is the mask value of the one object that it is about, None where it is about all."""

    kind: str
    label: int | None = None


def referents_in_scene(words: Sequence[str], things: tuple[SceneObject, ...]) -> list[Referent | None]:
    """What every word is about; None for a class, or its color, that the scene has not."""
    found: list[Referent | None] = [Referent(ENDING if word == END else OTHER) for word in words]
    held = {thing.name for thing in things}
    for mention in mentions(words):
        label = CLASSES.index(mention.name)
        found[mention.name_index] = Referent(CLASS, label) if mention.name in held else None
        if mention.color_index is not None:
            found[mention.color_index] = Referent(COLOR, label) if mention.name in held else None
    return found


def referents_by_class_name(words: Sequence[str], classes: tuple[str, ...], present: set[int]) -> list[Referent | None]:
    """The same where nothing but the names of the masks' classes is known: a class's word is its name."""
    labels = {name.lower(): label for label, name in enumerate(classes) if name != BACKGROUND}
    found: list[Referent | None] = []
    for word in words:
        label = labels.get(word.lower())
        if label is None:
            found.append(Referent(ENDING if word == END else OTHER))
        else:
            found.append(Referent(CLASS, label) if label in present else None)
    return found
