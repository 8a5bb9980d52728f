"""Generated scenes with captions as token IDs, and how right the captions of a captioner in pretraining are."""

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import TypeVar

import numpy as np
from torch import Tensor

from stages.data.scenes import captions, web
from stages.data.scenes.naming_accuracy import naming_accuracy
from stages.data.scenes.scene import Scene, SceneObject, Style, draw_scene
from stages.models import blip

CAPTIONS_PER_SCENE = 2
MAX_TOKENS = 24  # the longest caption fits
PROMPT = "a picture of"
MIN_LENGTH = 10  # of a generated caption, in tokens, start token and prompt included; so is the maximum
MAX_LENGTH = 30

TOKENIZER = blip.word_tokenizer(web.vocabulary())

# Percentages of greedy captions of held-out scenes, after `PROMPT`, and what they say.
METRICS = {
    "class_named": "a caption names the class of the largest object",
    "color_named": "... and its color",
    "place_named": "a caption tells a place, as in *at the top left*",
    "place_right": "... and it is right, of those that tell one",
    "relation_named": "a caption tells how two objects lie, as in *left of*",
    "relation_right": "... and it is right, of those that tell it",
}
Example = TypeVar("Example")
CaptionFunction = Callable[[np.random.Generator, Scene], str]


def draw_example(
    index: int, writers: str, seed: int, style: Style, caption: CaptionFunction, foreign: float = 0.0
) -> tuple[Scene, Tensor]:
    """Scene `index` of a split, and the token IDs `(CAPTIONS_PER_SCENE, MAX_TOKENS)` of its captions.

    `foreign` is the share of scenes whose captions describe another scene.
    """
    rng = np.random.default_rng([seed, *writers.encode(), index])
    scene = draw_scene(rng, writers, style)
    captioned = draw_scene(rng, writers, style) if rng.random() < foreign else scene
    texts = [caption(rng, captioned) for _ in range(CAPTIONS_PER_SCENE)]
    ids = TOKENIZER(texts, padding="max_length", max_length=MAX_TOKENS, return_tensors="pt").input_ids
    return scene, ids


def web_examples(load_example: Callable[..., Example], seed: int) -> Callable[[int], Example]:
    """The stream of training examples by index: `load_example` of scenes and captions in the style of the web."""
    return partial(
        load_example,
        writers="pretrain",
        seed=seed,
        style=web.STYLE,
        caption=web.web_caption,
        foreign=web.Noise.foreign,
    )


def task_caption(rng: np.random.Generator, scene: Scene) -> str:
    """The first caption of a scene in the task's style."""
    return captions.scene_captions(rng, scene)[0]


# Styles of held-out scenes that a finished model is evaluated on.
STYLES = {
    "the style of pretraining": (web.STYLE, web.web_caption),
    "the task's style": (Style(), task_caption),
}


def compute_metrics(ids: Tensor, objects: Sequence[tuple[SceneObject, ...]], side: int) -> dict[str, float]:
    """`METRICS` of captions as token IDs `(N, n)`, from the objects of each scene of `side` pixels.

    The percentage of right ones is NaN if no caption tells any.
    """
    texts = TOKENIZER.batch_decode(ids, skip_special_tokens=True)
    captions_by_id = {str(index): text for index, text in enumerate(texts)}
    objects_by_id = {str(index): scene_objects for index, scene_objects in enumerate(objects)}
    accuracy = naming_accuracy(captions_by_id, objects_by_id, side)
    return {metric: accuracy.get(metric, math.nan) for metric in METRICS}
