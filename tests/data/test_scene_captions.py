"""Captions of scenes: their vocabulary, the parser that reads them, and the noise of web captions."""

import numpy as np
import pytest

from stages.data.scenes import web
from stages.data.scenes.annotations import read_objects, write_objects
from stages.data.scenes.captions import Mention, mentions, scene_captions, vocabulary
from stages.data.scenes.scene import SceneObject, Style, draw_scene


def names_and_colors(items):
    return {(item.name, item.color) for item in items}


def test_the_vocabulary_covers_every_caption():
    words = set()
    for seed in range(200):
        rng = np.random.default_rng(seed)
        for caption in scene_captions(rng, draw_scene(rng, "pretrain")):
            words.update(caption.split())
        words.update(web.web_caption(rng, draw_scene(rng, "pretrain", web.STYLE)).split())
    assert words <= web.vocabulary()
    assert len(words & vocabulary()) > 60


def test_a_caption_names_one_or_two_objects_of_its_scene():
    for seed in range(100):
        rng = np.random.default_rng(seed)
        scene = draw_scene(rng, "pretrain_val")
        for caption in scene_captions(rng, scene):
            mentioned = mentions(caption.split())
            assert 1 <= len(mentioned) <= 2
            assert names_and_colors(mentioned) <= names_and_colors(scene.objects)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a red disc above a large blue number seven", [("circle", "red", 2, 1), ("seven", "blue", 8, 6)]),
        ("an orange moon and below it a hoop", [("crescent", "orange", 2, 1), ("ring", None, 7, None)]),
        ("a red", []),
        ("a red photo and a star", [("star", None, 5, None)]),
        ("", []),
    ],
)
def test_mentions_match_by_hand(text, expected):
    assert mentions(text.split()) == tuple(Mention(*fields) for fields in expected)


def test_web_captions_omit_and_replace_objects_and_colors():
    noiseless = web.Noise(**dict.fromkeys(vars(web.Noise()), 0.0))
    wrong = 0
    colorless = 0
    total = 0
    for seed in range(300):
        rng = np.random.default_rng(seed)
        scene = draw_scene(rng, "pretrain", web.STYLE)
        correct = names_and_colors(scene.objects)
        assert names_and_colors(mentions(web.web_caption(rng, scene, noiseless).split())) <= correct
        for mention in mentions(web.web_caption(rng, scene).split()):
            total += 1
            colorless += mention.color is None
            wrong += mention.color is not None and (mention.name, mention.color) not in correct
    assert 0.10 < colorless / total < 0.20
    assert 0.04 < wrong / total < 0.14


def test_web_scenes_have_other_numbers_of_objects():
    counts = [len(draw_scene(np.random.default_rng(seed), "pretrain", web.STYLE).objects) for seed in range(200)]
    assert set(counts) == {1, 2, 3, 4}
    assert web.STYLE.photographs < Style().photographs


def test_objects_are_read_as_they_were_written(tmp_path):
    star = SceneObject("star", "red", "large", 9.25, 1.0, 2.0, 0.5)
    ring = SceneObject("ring", "blue", "small", 1 / 3, 1.0, 2.0, -0.5)
    objects = {"a": (star, ring), "b": (ring,)}
    write_objects(tmp_path, objects)
    assert read_objects(tmp_path) == objects
    assert read_objects(tmp_path / "without_objects") == {}
