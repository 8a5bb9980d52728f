"""Captions of any images: by which cell and model, the same every time, and errors in one line."""

import csv
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest import ROOT, small_catr, untrained_blip
from small_extraction import states_job, write_images

from stages.captioning import caption_images
from stages.captioning.caption_job import decode_batch
from stages.captioning.image_captioner import ImageCaptioner
from stages.data.images import read_image
from stages.image_text.pixels import val_view
from stages.image_text.towers import load_blip
from stages.models.checkpoints.record import Checkpoint, write_checkpoint
from stages.params.experiment import load_experiment

SHAPES = ((48, 64), (80, 80), (33, 47), (64, 40))  # heights and widths


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Untrained captioners, and images of several sizes in `pictures`."""
    folder = tmp_path_factory.mktemp("captioners")
    untrained_blip(folder / "blip", sharp=5.0)
    small_catr(folder / "catr")
    (folder / "pictures").mkdir()
    write_images(folder / "pictures", SHAPES)
    return folder


@pytest.fixture
def experiment(folder, monkeypatch):
    """The committed params with these captioners."""
    monkeypatch.chdir(folder)
    for kind in ("blip", "catr"):
        write_checkpoint(kind, Checkpoint(kind, kind, "0"))
    experiment = load_experiment(ROOT / "params.yaml")
    embedded = experiment.embedded.model_copy(update={"blip": "blip", "catr": "catr"})
    experiment = experiment.model_copy(update={"embedded": embedded})
    monkeypatch.setattr(caption_images, "load_experiment", lambda: experiment)
    return experiment


@pytest.fixture
def caption(experiment, capsys):
    """Run a command line; return the captions that it prints, by image."""

    def run(*arguments: str) -> dict[str, str]:
        caption_images.run_command(arguments)
        lines = capsys.readouterr().out.splitlines()
        return dict(line.split(": ", 1) for line in lines)

    return run


def test_an_image_gets_the_same_caption_alone_and_in_a_folder(caption):
    sampled = caption("pictures", "--cell", "k50_t1")
    assert list(sampled) == ["0.png", "1.png", "2.png", "3.png"]
    assert caption("pictures/2.png", "--cell", "k50_t1") == {"2.png": sampled["2.png"]}
    Path("copies").mkdir(exist_ok=True)
    Path("copies/other.png").write_bytes(Path("pictures/2.png").read_bytes())
    assert caption("copies", "--cell", "k50_t1")["other.png"] != sampled["2.png"]  # another name: other random numbers


def test_a_validation_image_gets_the_caption_of_the_stage(experiment, caption):
    """Of a batch of many images, cells and seeds, from states in float16."""
    rows = [replace(row, image_id=Path(row.image).stem) for row in write_images(Path("pictures"), SHAPES)]
    towers = load_blip(experiment)
    pixels = torch.stack([val_view(read_image(Path(row.image)), towers.pixels.side) for row in rows])
    states = states_job(towers, tuple(rows)).forward(pixels)
    assert states.dtype == torch.float16
    task = experiment.captioning
    captioner = ImageCaptioner(experiment, "blip", "greedy", task.cells["greedy"])
    prompts = captioner.captioner.prompts(task)
    captions = decode_batch(captioner.generator, [row.image_id for row in rows], states, prompts, experiment)
    for cell, seed in (("greedy", None), ("k50_t1", task.seeds[0])):
        index = task.runs.index((cell, seed))
        expected = [captioner.text(image_captions[index]) for image_captions in captions]
        assert list(caption("pictures", "--cell", cell).values()) == expected
    assert caption("pictures") == caption("pictures", "--cell", "greedy")  # the default


def test_a_csv_file_has_what_is_printed_otherwise(caption, capsys):
    printed = caption("pictures", "--model", "catr")
    caption_images.run_command(["pictures", "--model", "catr", "--csv", "out/captions.csv"])
    assert capsys.readouterr().out == "out/captions.csv: 4 images, by catr, cell greedy\n"
    with Path("out/captions.csv").open(newline="") as file:
        assert list(csv.DictReader(file)) == [{"image": name, "caption": text} for name, text in printed.items()]
    assert printed != caption("pictures", "--model", "blip")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["text.png"], "caption: text.png: not a readable image"),
        (["pictures", "--cell", "nonsense"], "caption: captioning.cells has no cell 'nonsense'; choose with --cell"),
    ],
)
def test_wrong_input_is_named_in_one_line(experiment, capsys, arguments, message):
    Path("text.png").write_text("no image")
    with pytest.raises(SystemExit, match="2"):
        caption_images.run_command([*arguments, "--csv", "wrong.csv"])
    error = capsys.readouterr().err.splitlines()[-1]  # after the progress bar
    assert error.startswith(message)
    assert not Path("wrong.csv").exists()
