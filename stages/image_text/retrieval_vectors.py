"""Vectors that retrieval compares: class-token states of image views and of captions."""

import torch
from torch.utils.data import BatchSampler
from tqdm import tqdm

from stages.data.dataset import MappedDataset
from stages.data.manifest import Row
from stages.features.loading import iterate_shards
from stages.features.shards import Shards
from stages.features.tokens import FeatureTable
from stages.features.vectors import Vectors, concat_vectors, write_vectors
from stages.image_text.pixels import split_batches
from stages.image_text.towers import Towers

TEXTS = 128  # captions per batch of the text tower


def encode_views(
    towers: Towers,
    dataset: MappedDataset,
    image_ids: list[str],
    view_indices: list[int],
    shards: Shards,
    metadata: dict[str, str],
) -> Vectors:
    """Return the class-token states of every view of `dataset`: view `view_indices[i]` of image `image_ids[i]`.

    The shards stay until the caller deletes them.
    """
    name = f"encode {shards.target.name} views"
    for path, batches in iterate_shards(shards, dataset, split_batches, towers.workers, name):
        shard_indices: list[int] = []
        states = []
        for indices, pixels in batches:
            shard_indices += indices
            states.append(towers.image_states(pixels)[:, 0].half().cpu())
        shard_ids = [image_ids[index] for index in shard_indices]
        shard_views = [view_indices[index] for index in shard_indices]
        write_vectors(path, Vectors(shard_ids, shard_views, torch.cat(states), metadata))
    return concat_vectors(shards.files())


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
