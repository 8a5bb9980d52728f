"""Masks of any images: sizes, palette, areas, overlays, and errors in one line."""

import csv
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT
from PIL import Image
from small_checkpoints import small_backbone

from stages.core.runs import Run, write_run
from stages.core.stage import InputError
from stages.data.voc import COLOR_MAP
from stages.models import vit
from stages.models.checkpoints.record import Checkpoint, write_checkpoint
from stages.params.experiment import load_experiment
from stages.segmentation import predict
from stages.segmentation.heads import build_head
from stages.segmentation.segmenter import Segmenter, load_head
from stages.segmentation.train_head import output_paths, write_head

CLASSES = ("background", "cat", "dog")


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A folder with a small ViT, and random heads `linear` and `transformer`, of which `transformer` is better."""
    monkeypatch.chdir(tmp_path)
    backbone = small_backbone()
    vit.save(
        Path("vit.safetensors"), backbone.vit, vit.Architecture(side=24, dim=12, depth=2, heads=3, stem=(4, 4, 4, 4))
    )
    write_checkpoint("backbone", Checkpoint("vit.safetensors", "vit.safetensors", "0"))
    experiment = load_experiment(ROOT / "params.yaml")
    embedded = experiment.embedded.model_copy(update={"backbone": "vit.safetensors"})
    monkeypatch.setattr(predict, "load_experiment", lambda: experiment.model_copy(update={"embedded": embedded}))
    for name, miou in (("linear", 30.0), ("transformer", 60.0)):
        params = experiment.segmentation.heads[name]
        config = {"kind": params.kind, "options": params.options, "dim": 12, "classes": 3, "attention_heads": 3}
        torch.manual_seed(int(miou))
        write_head(output_paths(f"{name}-seed1")[0], build_head(**config), config, CLASSES)
        write_run(Run("segmentation", name, f"train_head@{name}-1", {}, {"miou": miou}, seed=1))
    return embedded


def write_image(path: Path, width: int, height: int) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return path


def test_masks_have_the_size_of_their_images_and_areas_are_theirs(project, capsys):
    write_image(Path("pictures/a/wide.png"), 133, 70)
    write_image(Path("pictures/small.png"), 24, 31)
    predict.main([Path("pictures")], None, 64, Path("out"))
    with Path("out/areas.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    for name, size in (("a/wide.png", (133, 70)), ("small.png", (24, 31))):
        with Image.open(f"out/{name}") as image:
            assert image.mode == "P"
            assert image.size == size
            assert image.getpalette() == COLOR_MAP.flatten().tolist()
            mask = np.asarray(image)
        areas = {row["class"]: float(row["percent"]) for row in rows if row["filename"] == name}
        assert areas == {
            CLASSES[index]: pytest.approx(100 * (mask == index).mean(), abs=0.005) for index in np.unique(mask)
        }
        with Image.open(f"out/{name.removesuffix('.png')}.overlay.png") as overlay:
            assert min(overlay.size) > 100
    assert "2 images, by data/models/segmentation/transformer-seed1.safetensors" in capsys.readouterr().out


def test_an_image_that_needs_no_shrinking_has_the_mask_of_the_validation_run(project):
    path = write_image(Path("image.png"), 40, 32)
    predict.main([path], "linear", 512, Path("out"))
    head, classes = load_head(output_paths("linear-seed1")[0])
    assert classes == CLASSES
    expected = Segmenter(small_backbone(), head, load_experiment(ROOT / "params.yaml").compute).predict(
        np.asarray(Image.open(path))[None]
    )
    assert np.array_equal(np.asarray(Image.open("out/image.png")), expected[0])


def test_images_that_cannot_be_segmented_are_named(project):
    Path("text.png").write_text("no image")
    with pytest.raises(InputError, match=r"^text.png: "):
        predict.main([Path("text.png")], None, 512, Path("out"))
    tiny = write_image(Path("tiny.png"), 30, 7)
    with pytest.raises(InputError, match=r"^tiny.png: .*30x7 pixels give 0x3 patches; needs 1x1"):
        predict.main([tiny], None, 512, Path("out"))


def test_images_with_outputs_of_one_name_are_named(project):
    write_image(Path("both/image.png"), 40, 32)
    write_image(Path("both/image.bmp"), 40, 32)
    with pytest.raises(InputError, match=r"image.bmp and image.png would both become image.png; pass one"):
        predict.main([Path("both")], None, 512, Path("out"))


def test_what_is_missing_is_named_with_the_stage_that_makes_it(project):
    image = write_image(Path("image.png"), 40, 32)
    with pytest.raises(InputError, match="no head 'nonsense'; trained heads: linear, transformer"):
        predict.main([image], "nonsense", 512, Path("out"))
    for name in ("linear", "transformer"):
        output_paths(f"{name}-seed1")[0].unlink()
    with pytest.raises(InputError, match="no trained head; the stage `train_head` makes them"):
        predict.main([image], None, 512, Path("out"))
