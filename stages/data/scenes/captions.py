"""Five captions of a scene from a small grammar: size, colour, class, relation, place, openings."""

import numpy as np

from stages.data.scenes.digits import DIGITS
from stages.data.scenes.scene import Scene, Thing

CAPTIONS = 5

_OPENINGS = ("a picture of", "a picture of", "this image shows", "this picture shows", "there is", "we see", "")
_SIZES = {"small": ("small", "little", ""), "medium": ("", "", "medium"), "large": ("large", "big", "")}
_SHAPE_WORDS = {"circle": ("circle", "disc"), "ring": ("ring", "hoop"), "crescent": ("crescent", "moon")}
_GROUNDS = {"photograph": ("on a photograph", "over a photo"), "texture": ("on a texture", "on a plain wall")}
_ROWS = ("top", "", "bottom")
_COLUMNS = ("left", "", "right")


def captions(rng: np.random.Generator, scene: Scene) -> tuple[str, ...]:
    """`CAPTIONS` sentences, the largest thing named first more often than not."""
    return tuple(_caption(rng, scene) for _ in range(CAPTIONS))


def _caption(rng, scene: Scene) -> str:
    things = list(scene.things)
    if rng.random() < 0.3:
        things.reverse()
    told = things[: 2 if rng.random() < 0.8 else 1]
    words = [_pick(rng, _OPENINGS), _phrase(rng, told[0])]
    if len(told) == 2:
        words += [_pick(rng, _relations(*told)), _phrase(rng, told[1])]
    elif rng.random() < 0.7:
        words.append(_place(told[0], scene.mask.shape[0]))
    if rng.random() < 0.25:
        words.append(_pick(rng, _GROUNDS[scene.ground]))
    return " ".join(word for word in words if word)


def _phrase(rng, thing: Thing) -> str:
    words = [_pick(rng, _SIZES[thing.size]), thing.colour, _noun(rng, thing.name)]
    words = [word for word in words if word]
    return " ".join(["an" if words[0][0] in "aeiou" else "a", *words])


def _noun(rng, name: str) -> str:
    if name in DIGITS:
        return _pick(rng, (name, f"number {name}", f"handwritten {name}"))
    return _pick(rng, _SHAPE_WORDS.get(name, (name,)))


def _relations(first: Thing, second: Thing) -> tuple[str, ...]:
    across, down = first.x - second.x, first.y - second.y
    if abs(across) > abs(down):
        return ("left of", "to the left of", "beside") if across < 0 else ("right of", "to the right of", "beside")
    return ("above", "over", "and below it") if down < 0 else ("below", "under", "and above it")


def _place(thing: Thing, side: int) -> str:
    row, column = _ROWS[int(3 * thing.y / side)], _COLUMNS[int(3 * thing.x / side)]
    if not (row or column):
        return "in the middle"
    return f"at the {row} {column}".replace("  ", " ").strip()


def _pick(rng, words):
    return words[rng.integers(len(words))]
