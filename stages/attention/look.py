"""Look into the models with any images.

    python -m stages.attention.look class-token FILE_OR_FOLDER ...   where a ViT's class token looks
    python -m stages.attention.look caption FILE_OR_FOLDER ...       where BLIP looks for each word of its caption
    python -m stages.attention.look positions VIT ...                position embeddings, of timm ViTs or files of ours

Pictures go to reports/look, one a file. What is asked of the models stands in params.yaml, under `attention`.
"""

import argparse
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

from stages.attention import caption_attention, class_attention, position_similarity
from stages.attention.caption_attention import Reader
from stages.attention.class_token import class_token_attention, resize_to_patches
from stages.attention.extra_vits import load_other
from stages.attention.panels import draw_rows
from stages.attention.positions import has_positions
from stages.captioning.captioner import load_captioner
from stages.captioning.decoding import CaptionGenerator, Lengths
from stages.core.stage import InputError, stage
from stages.data.images import find_images, read_image
from stages.data.manifest import IMAGE_ERRORS
from stages.image_text.image_encoder import load_encoder
from stages.params.captioning import Cell
from stages.params.experiment import Experiment, load_experiment

FOLDER = Path("reports/look")


def images(asked: list[Path], kind: str) -> Iterator[tuple[str, Image.Image, Path]]:
    """Every image with its name and where its picture goes."""
    for name, file in tqdm(find_images(asked).items(), kind, unit="image"):
        try:
            image = read_image(file)
        except IMAGE_ERRORS as fault:
            raise InputError(f"{file}: {fault}") from fault
        yield name, image, FOLDER / f"{name}.{kind}.png"


def look_class_token(experiment: Experiment, asked: list[Path]) -> Iterator[Path]:
    """A picture an image, with a row for each ViT: the pretrained one, and the fine-tuned one where there is one."""
    settings, side = experiment.attention.class_token, experiment.active.classifier.size.base
    models = class_attention.models(experiment)
    reason = class_attention.no_class_token(experiment, models[0].backbone)
    if reason:
        raise InputError(reason)
    for name, image, path in images(asked, "class_token"):
        rows = []
        for model in models:
            pixels = resize_to_patches(image, side, model.backbone.patch)
            (seen,) = class_token_attention(model.backbone, [pixels], settings.block, settings.rollout)
            rows.append((image, model.name, class_attention.panels_of(seen)))
        draw_rows(path, rows, f"{name}: attention of the class token, {class_attention.way_of(settings)}", shared=False)
        yield path


def look_caption(experiment: Experiment, asked: list[Path]) -> Iterator[Path]:
    """A picture an image: its greedy caption, word by word."""
    task, words = experiment.captioning, experiment.attention.captions
    captioner, states_of = load_captioner(experiment), load_encoder(experiment)
    cell = Cell(type="greedy", prompt=task.cells[words.cell].prompt)
    prompt = captioner.prompts(task.model_copy(update={"cells": {words.cell: cell}}))[cell.prompt]
    decoder, reader = (
        CaptionGenerator(captioner.decoder, Lengths(task.min_length, task.max_length)),
        Reader(captioner, words),
    )
    for name, image, path in images(asked, "caption"):
        states = states_of(image)
        written = decoder.sample(states, [prompt], [cell], np.zeros((1, 1, task.max_length)))
        (spelt,) = reader.words(states, prompt, written, task.max_length)
        caption_attention.draw_caption(path, image, name, spelt, [], words)
        yield path


def look_positions(experiment: Experiment, asked: list[Path]) -> Iterator[Path]:
    """A picture a ViT and grid."""
    grids = [None, *(tuple(grid) for grid in experiment.attention.positions.grids)]
    for source in map(str, asked):
        backbone = load_other(source, "positions")
        if not has_positions(backbone.vit):
            raise InputError(f"{source} has no learned position embeddings to show")
        yield from position_similarity.draw_source(source, backbone, grids, FOLDER).values()


KINDS = {"class-token": look_class_token, "caption": look_caption, "positions": look_positions}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=KINDS)
    parser.add_argument("asked", nargs="+", type=Path, metavar="FILE_OR_FOLDER", help="or the name of a ViT")
    asked = parser.parse_args()
    with stage("look"):
        for picture in KINDS[asked.what](load_experiment(), asked.asked):
            print(picture)
