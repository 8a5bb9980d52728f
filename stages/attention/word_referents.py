"""Which of a caption's words name what, as far as masks can tell."""

from collections.abc import Sequence
from dataclasses import dataclass

from stages.attention.words import END
from stages.data.scenes.captions import mentions
from stages.data.scenes.scene import CLASSES, Thing
from stages.data.voc import BACKGROUND

CLASS, COLOUR, ENDING, OTHER = "class", "colour", "end", "other"  # kinds of words


@dataclass(frozen=True)
class Spoken:
    """A word's kind; `label` is the mask value of the one object that it is about, None where it is about all."""

    kind: str
    label: int | None = None


def spoken_of_scene(words: Sequence[str], things: tuple[Thing, ...]) -> list[Spoken | None]:
    """What every word is about; None for a class, or its colour, that the scene has not."""
    found: list[Spoken | None] = [Spoken(ENDING if word == END else OTHER) for word in words]
    held = {thing.name for thing in things}
    for mention in mentions(words):
        label = CLASSES.index(mention.name)
        found[mention.name_at] = Spoken(CLASS, label) if mention.name in held else None
        if mention.colour_at is not None:
            found[mention.colour_at] = Spoken(COLOUR, label) if mention.name in held else None
    return found


def spoken_by_name(words: Sequence[str], classes: tuple[str, ...], present: set[int]) -> list[Spoken | None]:
    """The same where nothing but the names of the masks' classes is known: a class's word is its name."""
    labels = {name.lower(): label for label, name in enumerate(classes) if name != BACKGROUND}
    found: list[Spoken | None] = []
    for word in words:
        label = labels.get(word.lower())
        if label is None:
            found.append(Spoken(ENDING if word == END else OTHER))
        else:
            found.append(Spoken(CLASS, label) if label in present else None)
    return found
