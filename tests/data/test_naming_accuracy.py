"""Naming accuracy counts the classes and colors in captions that are in the scene."""

import numpy as np
import pytest

from stages.data.scenes.captions import mentions, scene_captions
from stages.data.scenes.naming_accuracy import naming_accuracy
from stages.data.scenes.scene import SceneObject, draw_scene

SIDE = 90  # pixels of a scene: the cells of the 3x3 grid are 30 wide


def scene_object(name, color, radius):
    return SceneObject(name, color, "large", radius, 1.0, 2.0, 0.5)


def test_naming_accuracy_matches_by_hand():
    objects = {
        "a": (scene_object("star", "red", 9.0), scene_object("ring", "blue", 20.0)),
        "b": (scene_object("one", "pink", 9.0),),
        "c": (scene_object("two", "white", 9.0),),
    }
    captions = {"a": "a red star beside a green hoop", "b": "a pink one", "c": "a white heart"}
    accuracy = naming_accuracy(captions, objects, SIDE)
    assert accuracy["class_named"] == pytest.approx(200 / 3)  # the ring and the one
    assert accuracy["color_named"] == pytest.approx(100 / 3)  # the one
    assert accuracy["class_there"] == pytest.approx(75)  # of star, ring, one and heart, all but the heart
    assert naming_accuracy(captions, {}, SIDE) == {}


def place(name, x, y):
    return SceneObject(name, "red", "large", 9.0, x, y, 0.5)


def test_places_are_those_of_the_named_object():
    objects = {image_id: (place("star", 10.0, 80.0), place("ring", 50.0, 50.0)) for image_id in "abcdef"}
    captions = {
        "a": "a red star at the bottom left",
        "b": "a star at the bottom",  # it is at the bottom left
        "c": "a hoop in the middle on a texture",
        "d": "a ring at the top",
        "e": "a heart at the bottom left",  # there is none
        "f": "a ring and a star",
    }
    accuracy = naming_accuracy(captions, objects, SIDE)
    assert accuracy["place_named"] == pytest.approx(100 * 5 / 6)
    assert accuracy["place_right"] == pytest.approx(100 * 2 / 5)
    assert accuracy["relation_named"] == 0  # "and" tells none
    assert "relation_right" not in accuracy


def test_relations_are_those_of_the_two_named_objects():
    objects = {image_id: (place("star", 10.0, 60.0), place("ring", 50.0, 50.0)) for image_id in "abcdefg"}
    captions = {
        "a": "a red star to the left of a ring",
        "b": "a ring beside a red star",
        "c": "a ring above a star",  # it is more to the right than above
        "d": "a ring left of a star",
        "e": "a heart left of a ring",  # there is none
        "f": "a star with a ring",
        "g": "a large red star left of a small blue hoop on a photograph",
    }
    accuracy = naming_accuracy(captions, objects, SIDE)
    assert accuracy["relation_named"] == pytest.approx(100 * 6 / 7)
    assert accuracy["relation_right"] == pytest.approx(100 * 3 / 6)
    assert accuracy["place_named"] == 0


def test_every_place_and_relation_of_the_grammar_is_recognized():
    """A caption of two objects names what the grammar said of them, whatever it drew."""
    rng = np.random.default_rng(0)
    for number in range(200):
        scene = draw_scene(rng, "val")
        for caption in scene_captions(rng, scene):
            words = caption.split()
            objects = {"a": scene.objects}
            accuracy = naming_accuracy({"a": caption}, objects, scene.mask.shape[0])
            if len(mentions(words)) == 2:
                assert (accuracy["relation_named"], accuracy["relation_right"]) == (100, 100), (number, caption)
                assert accuracy["place_named"] == 0
            else:
                assert accuracy["relation_named"] == 0
                named = "in the middle" in caption or "at the" in caption
                assert accuracy["place_named"] == 100 * named
                assert accuracy.get("place_right", 100) == 100, (number, caption)
