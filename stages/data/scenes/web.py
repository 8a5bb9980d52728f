"""Scenes and noisy captions on which BLIP is pretrained.

The original's checkpoint was pretrained on noisy image-text pairs from the web. These pairs imitate that: scenes with
other numbers of objects, other backgrounds and other writers than the tasks' scenes, and captions that are partial and
sometimes wrong. An object or its color is omitted or replaced, a relation becomes "and", phrases without content are
added, and some captions belong to another scene.
"""

from dataclasses import dataclass

import numpy as np

from stages.data.scenes import captions
from stages.data.scenes.captions import noun, noun_phrase, pick, position_phrase, relations
from stages.data.scenes.scene import CLASSES, COLORS, Scene, SceneObject, Style

STYLE = Style(objects=(1, 4), zoom=(0.9, 1.2), photographs=0.25)

# Phrases are drawn by index: another order, or another entry, changes every caption.
_OPENINGS = (
    *("a picture of", "this image shows", "this picture shows") * 2,
    *("a photo of", "an image of", "there is", "we see", "free", ""),
)
_ENDINGS = ("for sale", "clip art", "free download", "wallpaper")
_CONJUNCTIONS = ("and", "with", "next to")


@dataclass(frozen=True)
class Noise:
    """Probabilities of errors, omissions and additions in a caption."""

    foreign: float = 0.05  # the whole caption belongs to another scene
    class_wrong: float = 0.04
    color_wrong: float = 0.05
    color_omitted: float = 0.15
    size_omitted: float = 0.6
    relation_omitted: float = 0.15
    # A captioner learns places and relations only from captions that tell them. In scenes of several objects, places
    # are rare: there are many words for relations, and greedy decoding would prefer the one beginning of all places.
    position_omitted_single: float = 0.1  # in scenes of one object
    position_omitted_multiple: float = 0.85  # in scenes of several objects of which one is named
    second_omitted: float = 0.3
    # Where two objects lie can be learned only if a caption's second object follows from its first: mostly, they are
    # the two largest.
    smaller_first: float = 0.1
    ending: float = 0.08


def web_caption(rng: np.random.Generator, scene: Scene, noise: Noise = Noise()) -> str:
    """Draw a noisy caption of a scene. `noise.foreign` is applied by the caller, which has the other scenes."""
    objects = list(scene.objects)  # largest first
    if rng.random() < noise.smaller_first:
        objects = [objects[index] for index in rng.permutation(len(objects))]
    mentioned = objects[: 1 if rng.random() < noise.second_omitted else 2]
    position_omitted = noise.position_omitted_multiple if len(objects) > 1 else noise.position_omitted_single
    phrases = [pick(rng, _OPENINGS), _object_phrase(rng, mentioned[0], noise)]
    if len(mentioned) == 2:
        links = _CONJUNCTIONS if rng.random() < noise.relation_omitted else relations(*mentioned)
        phrases.append(pick(rng, links))
        phrases.append(_object_phrase(rng, mentioned[1], noise))
    elif rng.random() >= position_omitted:
        phrases.append(position_phrase(mentioned[0], scene.mask.shape[0]))
    if rng.random() < noise.ending:
        phrases.append(pick(rng, _ENDINGS))
    return " ".join(phrase for phrase in phrases if phrase)


def vocabulary() -> set[str]:
    """Return every word of the captions here and of the tasks' captions."""
    phrases = {*_OPENINGS, *_ENDINGS, *_CONJUNCTIONS}
    return captions.vocabulary() | {word for phrase in phrases for word in phrase.split()}


def _object_phrase(rng: np.random.Generator, obj: SceneObject, noise: Noise) -> str:
    size = "" if rng.random() < noise.size_omitted else obj.size
    color = pick(rng, tuple(COLORS)) if rng.random() < noise.color_wrong else obj.color
    color = "" if rng.random() < noise.color_omitted else color
    name = pick(rng, CLASSES[1:]) if rng.random() < noise.class_wrong else obj.name
    return noun_phrase(size, color, noun(rng, name))
