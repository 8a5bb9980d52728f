"""Captions of scenes: what they may say, how they are read back, and how the web's differ."""

import numpy as np
import pytest

from stages.captioning.naming_accuracy import naming_accuracy
from stages.data.scenes import web
from stages.data.scenes.annotations import read_objects, write_objects
from stages.data.scenes.captions import Mention, mentions, scene_captions, vocabulary
from stages.data.scenes.scene import SceneObject, Style, draw_scene


def test_every_caption_is_made_of_known_words():
    said = set()
    for seed in range(200):
        rng = np.random.default_rng(seed)
        said |= {word for text in scene_captions(rng, draw_scene(rng, "pretrain")) for word in text.split()}
        said |= set(web.web_caption(rng, draw_scene(rng, "pretrain", web.STYLE)).split())
    assert said <= web.vocabulary()
    assert len(said & vocabulary()) > 60


def test_what_a_caption_names_is_in_the_scene():
    for seed in range(100):
        rng = np.random.default_rng(seed)
        scene = draw_scene(rng, "pretrain_val")
        held = {(thing.name, thing.color) for thing in scene.objects}
        for text in scene_captions(rng, scene):
            found = mentions(text.split())
            assert 1 <= len(found) <= 2
            assert {(mention.name, mention.color) for mention in found} <= held


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
def test_mentions_by_hand(text, expected):
    assert mentions(text.split()) == tuple(Mention(*one) for one in expected)


def test_the_webs_captions_leave_out_and_mistake_things():
    silent = web.Noise(**dict.fromkeys(vars(web.Noise()), 0.0))
    wrong, colorless, total = 0, 0, 0
    for seed in range(300):
        rng = np.random.default_rng(seed)
        scene = draw_scene(rng, "pretrain", web.STYLE)
        held = {(thing.name, thing.color) for thing in scene.objects}
        assert all((one.name, one.color) in held for one in mentions(web.web_caption(rng, scene, silent).split()))
        for mention in mentions(web.web_caption(rng, scene).split()):
            total += 1
            colorless += mention.color is None
            wrong += mention.color is not None and (mention.name, mention.color) not in held
    assert 0.10 < colorless / total < 0.20
    assert 0.04 < wrong / total < 0.14


def test_the_webs_scenes_hold_other_numbers_of_things():
    counts = [len(draw_scene(np.random.default_rng(seed), "pretrain", web.STYLE).objects) for seed in range(200)]
    assert set(counts) == {1, 2, 3, 4}
    assert web.STYLE.photographs < Style().photographs


def thing(name, color, radius):
    return SceneObject(name, color, "large", radius, 1.0, 2.0, 0.5)


def test_named_right_by_hand():
    things = {
        "a": (thing("star", "red", 9.0), thing("ring", "blue", 20.0)),
        "b": (thing("one", "pink", 9.0),),
        "c": (thing("two", "white", 9.0),),
    }
    told = {"a": "a red star beside a green hoop", "b": "a pink one", "c": "a white heart"}
    found = naming_accuracy(told, things)
    assert found["class_named"] == pytest.approx(200 / 3)  # the ring and the one
    assert found["color_named"] == pytest.approx(100 / 3)  # the one
    assert found["class_there"] == pytest.approx(75)  # of star, ring, one and heart, the heart is not
    assert naming_accuracy(told, {}) == {}


def test_things_round_trip(tmp_path):
    things = {"a": (thing("star", "red", 9.25), thing("ring", "blue", 1 / 3)), "b": (thing("one", "pink", 9.0),)}
    write_objects(tmp_path, things)
    assert read_objects(tmp_path) == things
    assert read_objects(tmp_path / "nowhere") == {}
