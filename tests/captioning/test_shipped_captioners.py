"""The shipped captioners describe scenes that neither they nor the task's splits have seen."""

import math

import pytest
from conftest import ROOT
from PIL import Image

from stages.captioning.image_captioner import ImageCaptioner
from stages.data.scenes.naming_accuracy import naming_accuracy
from stages.models.checkpoints.record import Checkpoint, write_checkpoint
from stages.params.experiment import load_experiment
from stages.pretraining.captioned_scenes import STYLES, draw_example

SCENES = 40


@pytest.mark.parametrize("kind", ["blip", "catr"])
def test_the_caption_of_a_scene_names_its_largest_object_and_its_color(kind, tmp_path, monkeypatch):
    experiment = load_experiment(ROOT / "params.yaml")
    source = experiment.captioner_source(kind)
    monkeypatch.chdir(tmp_path)
    write_checkpoint(kind, Checkpoint(source, str(ROOT / source), "0"))
    captioner = ImageCaptioner(experiment, kind, "greedy", experiment.captioning.cells["greedy"])
    style, caption = STYLES["the task's style"]
    captions, objects = {}, {}
    for index in range(SCENES):
        scene, _ = draw_example(index, "pretrain_val", experiment.seed, style, caption)
        captions[str(index)] = captioner.caption(Image.fromarray(scene.image), str(index))
        objects[str(index)] = scene.objects
    accuracy = naming_accuracy(captions, objects, style.side)
    # The cards say at least 95 % of 500 scenes: four standard deviations of a proportion of 40.
    lowest = 95 - 400 * math.sqrt(0.95 * 0.05 / SCENES)
    assert accuracy["class_named"] > lowest
    assert accuracy["color_named"] > lowest
