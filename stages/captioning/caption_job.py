"""Decode captions shard by shard, so that an interrupted stage resumes, on one machine or on many.

A shard has one row per image: `image_id`, `view` (always 0), and `captions`, the token IDs of every run of
`captioning.cells` and `captioning.seeds`.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from torch import Tensor, nn
from torch.utils.data import Dataset

from stages.captioning.decoding import CaptionGenerator
from stages.features.batching import batch_by_key
from stages.features.extraction import ShardJob
from stages.features.loading import Batch
from stages.features.parquet import WRITE_OPTIONS, reading_errors
from stages.features.tokens import FeatureTable
from stages.models.compute import get_device
from stages.params.captioning import CellRun
from stages.params.experiment import Experiment

IMAGES = 64  # per batch, each with all cells and seeds whose prompts have the same length
# Images per batch where `captioning.stop` is `batch`: that of the original's captioning code, whose captions
# depend on it.
ORIGINAL_BATCH = 16

_SCHEMA = pa.schema(
    [
        pa.field("image_id", pa.string(), nullable=False),
        pa.field("view", pa.int16(), nullable=False),
        pa.field("captions", pa.list_(pa.list_(pa.int32())), nullable=False),
    ]
)


@dataclass
class StatesDataset(Dataset):
    """Element `index` is `(index, states of image index)`, `(rows, columns, dim)` float16."""

    table: FeatureTable

    def __len__(self) -> int:
        return len(self.table)

    def __getitems__(self, indices: list[int]) -> list[tuple[int, Tensor]]:
        """Return a whole batch at once, as a `DataLoader` asks for it where this method exists."""
        views = self.table.read_views(indices)
        return [(index, view.tokens) for index, view in zip(indices, views, strict=True)]


@dataclass
class CaptionJob(ShardJob):
    """The captions of all images of `table`. `prompts` has token IDs by prompt."""

    generator: CaptionGenerator
    table: FeatureTable
    prompts: dict[str, list[int]]
    experiment: Experiment

    @property
    def model(self) -> nn.Module:
        return self.generator.decoder.model

    def prepare(self) -> None:
        self.model.to(get_device())

    @property
    def dataset(self) -> StatesDataset:
        return StatesDataset(self.table)

    def split_batches(self, rows: range) -> Iterator[list[int]]:
        batch_size = ORIGINAL_BATCH if self.experiment.captioning.stop == "batch" else IMAGES
        return batch_by_key(rows, lambda index: self.table.grids[index], lambda _: batch_size)

    def write(self, path: Path, batches: Iterable[Batch]) -> None:
        image_ids: list[str] = []
        captions: list[list[list[int]]] = []
        for indices, states in batches:
            batch_ids = [self.table.image_ids[index] for index in indices]
            image_ids += batch_ids
            captions += decode_batch(self.generator, batch_ids, states, self.prompts, self.experiment)
        table = pa.table([image_ids, [0] * len(image_ids), captions], schema=_SCHEMA)
        pq.write_table(table, path, **WRITE_OPTIONS)


def decode_batch(
    generator: CaptionGenerator,
    image_ids: list[str],
    states: Tensor,
    prompts: dict[str, list[int]],
    experiment: Experiment,
) -> list[list[list[int]]]:
    """Return, for every image, its captions' token IDs, in the order of `captioning.runs`.

    `states` are `(B, rows, columns, dim)`, in any precision. Greedy and sampling cells whose prompts have the same
    length share a batch, each sampling cell once per seed. A caption's random numbers depend only on (seed, cell,
    image ID).
    """
    task = experiment.captioning
    cells = task.cells
    longest = generator.lengths.longest
    states = states.to(get_device(), non_blocking=True).float()
    captions: list[dict[CellRun, list[int]]] = [{} for _ in image_ids]
    groups: dict[int, list[CellRun]] = {}  # greedy and sampling runs by the length of their prompts
    for name, seed in task.runs:
        if cells[name].type != "beam":
            groups.setdefault(len(prompts[cells[name].prompt]), []).append((name, seed))
    for runs in groups.values():
        group = [cells[name] for name, _ in runs]
        # In the order of the generated captions.
        streams = [
            np.random.default_rng([experiment.seed_for(f"captioning/{name}", seed), *image_id.encode()])
            for image_id, (name, seed) in product(image_ids, runs)
        ]
        uniform = np.stack([stream.random(longest) for stream in streams])
        uniform = uniform.reshape(len(image_ids), len(runs), longest)
        sequences = generator.sample(states, [prompts[cell.prompt] for cell in group], group, uniform)
        for (image, run), sequence in zip(product(captions, runs), sequences, strict=True):
            image[run] = sequence
    for name, cell in cells.items():
        if cell.type == "beam":
            assert cell.beams is not None  # params require it of this type
            sequences = generator.beam_search(states, prompts[cell.prompt], cell.beams)
            for image, sequence in zip(captions, sequences, strict=True):
                image[name, None] = sequence
    return [[image[run] for run in task.runs] for image in captions]


def read_captions(paths: Iterable[Path], runs: list[CellRun]) -> dict[CellRun, dict[str, list[int]]]:
    """Return the token IDs of shards by run and image ID."""
    captions: dict[CellRun, dict[str, list[int]]] = {run: {} for run in runs}
    for path in paths:
        with reading_errors(path):
            rows: list[dict[str, Any]] = pq.read_table(path).to_pylist()
        for row in rows:
            for run, tokens in zip(runs, row["captions"], strict=True):
                captions[run][row["image_id"]] = tokens
    return captions
