"""Five captions of a scene from a small grammar: size, color, class, relation, place; and how to read them back."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from stages.data.scenes.digits import DIGITS
from stages.data.scenes.scene import CLASSES, COLORS, Scene, SceneObject

CAPTIONS = 5

_OPENINGS = ("", "", "", "there is", "we see")
_SIZES = {"small": ("small", "little", ""), "medium": ("", "", "medium"), "large": ("large", "big", "")}
_SHAPE_WORDS = {"circle": ("circle", "disc"), "ring": ("ring", "hoop"), "crescent": ("crescent", "moon")}
_GROUNDS = {"photograph": ("on a photograph", "over a photo"), "texture": ("on a texture", "on a plain wall")}
_ROWS = ("top", "", "bottom")
_COLUMNS = ("left", "", "right")


def scene_captions(rng: np.random.Generator, scene: Scene) -> tuple[str, ...]:
    """`CAPTIONS` sentences, the largest thing named first more often than not."""
    return tuple(_caption(rng, scene) for _ in range(CAPTIONS))


def _caption(rng, scene: Scene) -> str:
    things = list(scene.objects)
    if rng.random() < 0.3:
        things.reverse()
    told = things[: 2 if rng.random() < 0.8 else 1]
    words = [_pick(rng, _OPENINGS), _phrase(rng, told[0])]
    if len(told) == 2:
        words += [_pick(rng, relations(*told)), _phrase(rng, told[1])]
    elif rng.random() < 0.7:
        words.append(position_phrase(told[0], scene.mask.shape[0]))
    if rng.random() < 0.25:
        words.append(_pick(rng, _GROUNDS[scene.ground]))
    return " ".join(word for word in words if word)


def _phrase(rng, thing: SceneObject) -> str:
    return noun_phrase(_pick(rng, _SIZES[thing.size]), thing.color, noun(rng, thing.name))


def noun_phrase(*words: str) -> str:
    """The words that are not empty, behind their article."""
    told = [word for word in words if word]
    return " ".join(["an" if told[0][0] in "aeiou" else "a", *told])


def noun(rng, name: str) -> str:
    """One of the words for a class."""
    if name in DIGITS:
        return _pick(rng, (name, f"number {name}", f"handwritten {name}"))
    return _pick(rng, _SHAPE_WORDS.get(name, (name,)))


def relations(first: SceneObject, second: SceneObject) -> tuple[str, ...]:
    """What may stand between two things: where the first lies, seen from the second."""
    across, down = first.x - second.x, first.y - second.y
    if abs(across) > abs(down):
        return ("left of", "to the left of", "beside") if across < 0 else ("right of", "to the right of", "beside")
    return ("above", "over", "and below it") if down < 0 else ("below", "under", "and above it")


def position_phrase(thing: SceneObject, side: int) -> str:
    """Where a thing lies in a scene of that side."""
    row, column = _ROWS[int(3 * thing.y / side)], _COLUMNS[int(3 * thing.x / side)]
    if not (row or column):
        return "in the middle"
    return f"at the {row} {column}".replace("  ", " ").strip()


def _pick(rng, words):
    return words[rng.integers(len(words))]


@dataclass(frozen=True)
class Mention:
    """A class that a caption names, and the color in the same noun phrase, or None; and which words they are."""

    name: str
    color: str | None
    name_at: int
    color_at: int | None


_NAMES = {name: name for name in CLASSES[1:]} | {word: name for name, words in _SHAPE_WORDS.items() for word in words}


def mentions(words: Sequence[str]) -> tuple[Mention, ...]:
    """The things that a caption's words name, in its order. A color belongs to the next noun of its own phrase."""
    found, color, color_at = [], None, None
    for place, word in enumerate(word.lower() for word in words):
        if word in COLORS:
            color, color_at = word, place
        elif word in _NAMES:
            found.append(Mention(_NAMES[word], color, place, color_at))
        if word in ("a", "an", *_NAMES):
            color, color_at = None, None
    return tuple(found)


def vocabulary() -> set[str]:
    """Every word that a caption of a scene can hold."""
    phrases = {*_OPENINGS, *_ROWS, *_COLUMNS, *COLORS, *_NAMES, "a an and below above it at the in middle"}
    phrases |= {word for group in (*_SIZES.values(), *_GROUNDS.values()) for word in group}
    phrases |= {"number", "handwritten", "left of", "to the right of", "beside", "over", "under"}
    return {word for phrase in phrases for word in phrase.split()}
