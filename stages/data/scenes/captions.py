"""Captions of scenes from a small grammar (size, color, class, relation, position), and a parser for them."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from stages.data.scenes.digits import DIGITS
from stages.data.scenes.scene import CLASSES, COLORS, Scene, SceneObject

CAPTIONS = 5  # per scene, as in COCO

# Phrases are drawn by index: another order, or another entry, changes every caption. An empty phrase is left out, and
# a repeated phrase is drawn more often.
_OPENINGS = ("", "", "", "there is", "we see")
_SIZES = {"small": ("small", "little", ""), "medium": ("", "", "medium"), "large": ("large", "big", "")}
_SHAPE_WORDS = {"circle": ("circle", "disc"), "ring": ("ring", "hoop"), "crescent": ("crescent", "moon")}
_BACKGROUNDS = {"photograph": ("on a photograph", "over a photo"), "texture": ("on a texture", "on a plain wall")}
_ROWS = ("top", "", "bottom")
_COLUMNS = ("left", "", "right")
_SIDEWAYS = {"left": ("left of", "to the left of", "beside"), "right": ("right of", "to the right of", "beside")}
_UPRIGHT = {"above": ("above", "over", "and below it"), "below": ("below", "under", "and above it")}
_RELATIONS = {phrase for phrases in (*_SIDEWAYS.values(), *_UPRIGHT.values()) for phrase in phrases}

# Class by the words for it: its name, and the synonyms of shapes.
_CLASS_BY_WORD = {name: name for name in CLASSES[1:]}
_CLASS_BY_WORD |= {word: name for name, words in _SHAPE_WORDS.items() for word in words}

Choice = TypeVar("Choice")


def scene_captions(rng: np.random.Generator, scene: Scene) -> tuple[str, ...]:
    """Return `CAPTIONS` captions of a scene."""
    return tuple(_caption(rng, scene) for _ in range(CAPTIONS))


def _caption(rng: np.random.Generator, scene: Scene) -> str:
    objects = list(scene.objects)  # largest first
    if rng.random() < 0.3:
        objects.reverse()
    mentioned = objects[: 2 if rng.random() < 0.8 else 1]
    phrases = [pick(rng, _OPENINGS), _object_phrase(rng, mentioned[0])]
    if len(mentioned) == 2:
        phrases.append(pick(rng, relations(*mentioned)))
        phrases.append(_object_phrase(rng, mentioned[1]))
    elif rng.random() < 0.7:
        phrases.append(position_phrase(mentioned[0], scene.mask.shape[0]))
    if rng.random() < 0.25:
        phrases.append(pick(rng, _BACKGROUNDS[scene.background]))
    return " ".join(phrase for phrase in phrases if phrase)


def _object_phrase(rng: np.random.Generator, obj: SceneObject) -> str:
    return noun_phrase(pick(rng, _SIZES[obj.size]), obj.color, noun(rng, obj.name))


def noun_phrase(*words: str) -> str:
    """Join the non-empty words, after "a" or "an"."""
    phrase = " ".join(word for word in words if word)
    article = "an" if phrase[0] in "aeiou" else "a"
    return f"{article} {phrase}"


def noun(rng: np.random.Generator, name: str) -> str:
    """Draw a noun for a class."""
    if name in DIGITS:
        return pick(rng, (name, f"number {name}", f"handwritten {name}"))
    return pick(rng, _SHAPE_WORDS.get(name, (name,)))


def relations(first: SceneObject, second: SceneObject) -> tuple[str, ...]:
    """Phrases for the position of the first object relative to the second."""
    dx = first.x - second.x
    dy = first.y - second.y
    if abs(dx) > abs(dy):
        return _SIDEWAYS["left" if dx < 0 else "right"]
    return _UPRIGHT["above" if dy < 0 else "below"]


def relation_phrase(words: Sequence[str], first: "Mention", second: "Mention") -> str | None:
    """Return the phrase between two classes that the words of a caption name in turn, if it tells their relation."""
    between = [word.lower() for word in words[first.name_index + 1 : second.name_index]]
    articles = [index for index, word in enumerate(between) if word in ("a", "an")]
    phrase = " ".join(between[: articles[0]] if articles else between)
    return phrase if phrase in _RELATIONS else None


def place_phrase(words: Sequence[str]) -> str | None:
    """Return the phrase by which the words of a caption tell a place, as `position_phrase` does, if any."""
    text = f" {' '.join(words).lower()} "
    matches = [place for place in _PLACES if f" {place} " in text]
    return max(matches, key=len, default=None)  # "at the top left" contains "at the top"


def grid_cell(obj: SceneObject, side: int) -> tuple[int, int]:
    """Row and column, in a 3x3 grid, of the cell with an object's center; `side` is the scene's side in pixels."""
    return int(3 * obj.y / side), int(3 * obj.x / side)


def position_phrase(obj: SceneObject, side: int) -> str:
    """Name the `grid_cell` of an object."""
    row, column = grid_cell(obj, side)
    return _name_place(_ROWS[row], _COLUMNS[column])


def _name_place(row: str, column: str) -> str:
    if not (row or column):
        return "in the middle"
    return " ".join(word for word in ("at the", row, column) if word)


_PLACES = [_name_place(row, column) for row in _ROWS for column in _COLUMNS]


def pick(rng: np.random.Generator, choices: Sequence[Choice]) -> Choice:
    """Draw an element uniformly."""
    return choices[int(rng.integers(len(choices)))]


@dataclass(frozen=True)
class Mention:
    """A class that a caption names, and the color in the same noun phrase, if any.

    `name_index` and `color_index` are the indices of both words in the caption.
    """

    name: str
    color: str | None
    name_index: int
    color_index: int | None


def mentions(words: Sequence[str]) -> tuple[Mention, ...]:
    """Return the classes that the words of a caption name, in order. A color belongs to the next noun of its phrase."""
    result = []
    color = None
    color_index = None
    for index, word in enumerate(word.lower() for word in words):
        if word in COLORS:
            color = word
            color_index = index
        elif word in _CLASS_BY_WORD:
            result.append(Mention(_CLASS_BY_WORD[word], color, index, color_index))
        if word in ("a", "an") or word in _CLASS_BY_WORD:  # a noun phrase begins or ends
            color = None
            color_index = None
    return tuple(result)


def vocabulary() -> set[str]:
    """Return every word that `scene_captions` can draw."""
    phrases = {*_OPENINGS, *_ROWS, *_COLUMNS, *COLORS, *_CLASS_BY_WORD}
    for group in (*_SIZES.values(), *_BACKGROUNDS.values()):
        phrases.update(group)
    phrases |= {"a an and below above it at the in middle", "number", "handwritten"}
    phrases |= {"left of", "to the right of", "beside", "over", "under"}
    return {word for phrase in phrases for word in phrase.split()}
