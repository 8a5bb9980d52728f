"""Images and jobs for tests of extraction: small enough to be computed in a moment."""

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import numpy as np
from conftest import ROOT
from PIL import Image

from stages.captioning.caption_job import CaptionJob
from stages.captioning.decoding import CaptionGenerator, Lengths
from stages.captioning.text_decoders import BlipDecoder
from stages.data.manifest import Row
from stages.features.extraction import extract_shards
from stages.features.shards import Shards
from stages.features.tokens import FeatureMetadata, FeatureTable
from stages.image_text.decoder_states import BlipStatesJob
from stages.image_text.towers import Towers
from stages.models import blip
from stages.params.compute import Compute
from stages.params.experiment import load_experiment

COMPUTE = Compute(precision="float32", compile=False, workers=0, live=False)
METADATA = FeatureMetadata("tiny", "w", "t", dim=12, heads=3, patch="8x8", manifest="m")  # of `small_backbone`'s tokens


def write_images(folder: Path, shapes: Iterable[tuple[int, int]]) -> tuple[Row, ...]:
    """Write random images of the given heights and widths; return their rows, `id00`, `id01` and so on."""
    rng = np.random.default_rng(0)
    rows = []
    for index, (height, width) in enumerate(shapes):
        path = folder / f"{index}.png"
        Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8)).save(path)
        rows.append(Row(f"id{index:02d}", "val", str(path), height=height, width=width))
    return tuple(rows)


def states_job(towers: Towers, rows: tuple[Row, ...]) -> BlipStatesJob:
    """The states of `conftest.untrained_blip`."""
    return BlipStatesJob(towers, rows, replace(METADATA, dim=32))


def caption_job(towers: Towers, rows: tuple[Row, ...], folder: Path) -> CaptionJob:
    """A greedy and a sampling cell of `conftest.untrained_blip`, on its own states, which are written to `folder`."""
    shards = Shards(folder / "states", [(row.image_id, 0) for row in rows], {}, waiting=folder)
    extract_shards(states_job(towers, rows), shards, COMPUTE, "states")
    experiment = load_experiment(ROOT / "params.yaml")
    cells = {name: experiment.captioning.cells[name] for name in ("greedy", "k50_t1")}
    captioning = experiment.captioning.model_copy(update={"cells": cells, "seeds": [1], "max_length": 12})
    experiment = experiment.model_copy(update={"captioning": captioning})
    generator = CaptionGenerator(BlipDecoder(blip.load_decoder(towers.tokenizer.name_or_path)), Lengths(3, 12))
    prompts = {cell.prompt: [] for cell in cells.values()}
    return CaptionJob(generator, FeatureTable(shards.folder), prompts, experiment)
