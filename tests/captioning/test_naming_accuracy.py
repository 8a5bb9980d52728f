"""Naming accuracy counts the classes and colors in captions that are in the scene."""

import pytest

from stages.captioning.naming_accuracy import naming_accuracy
from stages.data.scenes.scene import SceneObject


def scene_object(name, color, radius):
    return SceneObject(name, color, "large", radius, 1.0, 2.0, 0.5)


def test_naming_accuracy_matches_by_hand():
    objects = {
        "a": (scene_object("star", "red", 9.0), scene_object("ring", "blue", 20.0)),
        "b": (scene_object("one", "pink", 9.0),),
        "c": (scene_object("two", "white", 9.0),),
    }
    captions = {"a": "a red star beside a green hoop", "b": "a pink one", "c": "a white heart"}
    accuracy = naming_accuracy(captions, objects)
    assert accuracy["class_named"] == pytest.approx(200 / 3)  # the ring and the one
    assert accuracy["color_named"] == pytest.approx(100 / 3)  # the one
    assert accuracy["class_there"] == pytest.approx(75)  # of star, ring, one and heart, all but the heart
    assert naming_accuracy(captions, {}) == {}
