"""Vectors that retrieval compares: class-token states of image views and of captions."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.data import BatchSampler
from tqdm import tqdm

from stages.data.dataset import MappedDataset
from stages.data.manifest import Row
from stages.features.loading import Batch, compute_ahead
from stages.features.shards import RowKey
from stages.features.tokens import FeatureTable
from stages.features.vectors import Vectors, write_vectors
from stages.image_text.towers import Towers
from stages.image_text.towers_job import TowersJob

TEXTS = 128  # captions per batch of the text tower


@dataclass
class ViewVectorsJob(TowersJob):
    """The class-token states of image views: row `i` belongs to image and view `keys[i]`, and is `dataset[i]`."""

    views: MappedDataset
    keys: list[RowKey]
    metadata: dict[str, str]

    @property
    def dataset(self) -> MappedDataset:
        return self.views

    def forward(self, inputs: Tensor) -> Tensor:
        """Return `(B, dim)` float16."""
        return self.towers.image_states(inputs)[:, 0].half()

    def write(self, path: Path, batches: Iterable[Batch]) -> None:
        image_ids: list[str] = []
        view_indices: list[int] = []
        states = []
        for indices, batch_states in compute_ahead(batches, self.forward):
            for index in indices:
                image_id, view_index = self.keys[index]
                image_ids.append(image_id)
                view_indices.append(view_index)
            states.append(batch_states)
        write_vectors(path, Vectors(image_ids, view_indices, torch.cat(states), self.metadata))


def class_tokens(table: FeatureTable, metadata: dict[str, str]) -> Vectors:
    """Return the class-token states in a table of BLIP's hidden states."""
    image_ids = []
    states = []
    for group in range(table.num_groups):
        for row in table.read_group(group):
            image_ids.append(row.image_id)
            states.append(row.tokens[0, 0].clone())  # a slice would keep the memory of its whole group
    return Vectors(image_ids, [0] * len(image_ids), torch.stack(states), metadata)


def encode_captions(towers: Towers, rows: tuple[Row, ...], metadata: dict[str, str]) -> Vectors:
    """Return the class-token state of every caption of every row, in order."""
    captions = [(row.image_id, index, text) for row in rows for index, text in enumerate(row.captions)]
    image_ids, indices, texts = (list(column) for column in zip(*captions, strict=True))
    # Captions of similar length share a batch, for less padding.
    order = sorted(range(len(texts)), key=lambda number: len(texts[number].split()))
    states = []
    with tqdm(total=len(texts), desc="encode captions", unit="caption", mininterval=1) as progress:
        for batch in BatchSampler(order, TEXTS, drop_last=False):
            states.append(towers.text_states([texts[number] for number in batch]).half().cpu())
            progress.update(len(batch))
    sorted_states = torch.cat(states)
    values = torch.empty_like(sorted_states)
    values[order] = sorted_states  # back to the order of `captions`
    return Vectors(image_ids, indices, values, metadata)
