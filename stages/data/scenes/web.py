"""Scenes and captions in another style than the task's: what BLIP is pretrained on.

The reports' checkpoint came from noisy pairs off the web. So these scenes hold other numbers of things on other
grounds, by other writers, and their captions are partial and sometimes wrong: a thing or its color is left out or
mistaken, a relation is told as "and", an opening or a trailing phrase says nothing, some belong to another scene.
"""

from dataclasses import dataclass

import numpy as np

from stages.data.scenes import captions
from stages.data.scenes.captions import noun, noun_phrase, position_phrase, relations
from stages.data.scenes.scene import CLASSES, COLORS, Scene, SceneObject, Style

STYLE = Style(objects=(1, 4), zoom=(0.9, 1.2), photographs=0.25)

_OPENINGS = (
    *("a picture of", "this image shows", "this picture shows") * 2,
    *("a photo of", "an image of", "there is", "we see", "free", ""),
)
_ENDINGS = ("for sale", "clip art", "free download", "wallpaper")
_GLUE = ("and", "with", "next to")


@dataclass(frozen=True)
class Noise:
    """Shares of what goes wrong, or is left out, in a caption."""

    foreign: float = 0.05  # whole captions that belong to another scene
    class_wrong: float = 0.04
    color_wrong: float = 0.05
    color_untold: float = 0.15
    size_untold: float = 0.6
    relation_untold: float = 0.4
    place_untold: float = 0.4  # of a lone thing
    place_untold_among: float = 0.85  # of one among others
    second_untold: float = 0.3
    smaller_first: float = 0.25
    ending: float = 0.08


def web_caption(rng: np.random.Generator, scene: Scene, noise: Noise = Noise()) -> str:
    """One noisy caption of a scene. Which captions are foreign, the caller decides: it has the other scenes."""
    things = list(scene.objects)
    if rng.random() < noise.smaller_first:
        things = [things[index] for index in rng.permutation(len(things))]
    told = things[: 1 if rng.random() < noise.second_untold else 2]
    parts = [_pick(rng, _OPENINGS), _phrase(rng, told[0], noise)]
    if len(told) == 2:
        glue = _GLUE if rng.random() < noise.relation_untold else relations(*told)
        parts += [_pick(rng, glue), _phrase(rng, told[1], noise)]
    elif rng.random() >= (noise.place_untold_among if len(things) > 1 else noise.place_untold):
        parts.append(position_phrase(told[0], scene.mask.shape[0]))
    if rng.random() < noise.ending:
        parts.append(_pick(rng, _ENDINGS))
    return " ".join(part for part in parts if part)


def vocabulary() -> set[str]:
    """Every word that a caption here or in the task can hold."""
    phrases = {*_OPENINGS, *_ENDINGS, *_GLUE}
    return captions.vocabulary() | {word for phrase in phrases for word in phrase.split()}


def _phrase(rng, thing: SceneObject, noise: Noise) -> str:
    size = "" if rng.random() < noise.size_untold else thing.size
    color = _pick(rng, tuple(COLORS)) if rng.random() < noise.color_wrong else thing.color
    color = "" if rng.random() < noise.color_untold else color
    name = _pick(rng, CLASSES[1:]) if rng.random() < noise.class_wrong else thing.name
    return noun_phrase(size, color, noun(rng, name))


def _pick(rng, choices):
    return choices[rng.integers(len(choices))]
