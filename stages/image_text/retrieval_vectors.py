"""What retrieval compares: class-token states of image views and of captions."""

import torch
from torch import Tensor
from tqdm import tqdm

from stages.data.manifest import Row
from stages.features.loading import iterate_shards
from stages.features.shards import Shards
from stages.features.tokens import FeatureTable
from stages.features.vectors import Vectors, concat_vectors, write_vectors
from stages.image_text.towers import Towers
from stages.image_text.views import Views, in_batches

TEXTS = 128  # captions that the text tower reads at once


def encode_views(
    towers: Towers, rows: tuple[Row, ...], numbers: list[int], seeds: list[int] | None, shards: Shards
) -> Vectors:
    """Class-token states of one view of each of `rows`, an image's own views told apart by `numbers`.

    `seeds` augment the views. Comes in shards, which are kept until the caller throws them away.
    """
    made_with, views = dict(shards.metadata), Views(rows, towers.pixels.side, seeds)
    for path, arriving in iterate_shards(
        shards, views, in_batches, towers.workers, f"encode {shards.target.name} views"
    ):
        found, states = [], []
        for some, pixels in arriving:
            found += some
            states.append(towers.image_states(pixels)[:, 0].half().cpu())
        ids = [rows[index].image_id for index in found]
        write_vectors(path, Vectors(ids, [numbers[index] for index in found], torch.cat(states), made_with))
    return concat_vectors(shards.files())


def class_tokens(table: FeatureTable, made_with: dict[str, str]) -> Vectors:
    """What retrieval needs of the hidden states of whole images."""
    found = [
        (row.image_id, row.tokens[0, 0].clone())  # a window would keep its group in memory
        for group in range(table.num_groups)
        for row in table.read_group(group)
    ]
    ids, states = zip(*found, strict=True)
    return Vectors(list(ids), [0] * len(ids), torch.stack(states), made_with)


def encode_captions(towers: Towers, rows: tuple[Row, ...], made_with: dict[str, str]) -> Vectors:
    """Class-token states of every caption of every row; captions of like length share a batch."""
    told = [(row.image_id, index, text) for row in rows for index, text in enumerate(row.captions)]
    order = sorted(range(len(told)), key=lambda index: len(told[index][2].split()))
    states: list[Tensor | None] = [None] * len(told)
    with tqdm(total=len(told), desc="encode captions", unit="caption", mininterval=1) as bar:
        for start in range(0, len(order), TEXTS):
            some = order[start : start + TEXTS]
            for index, state in zip(some, towers.text_states([told[one][2] for one in some]).half().cpu(), strict=True):
                states[index] = state
            bar.update(len(some))
    return Vectors([one[0] for one in told], [one[1] for one in told], torch.stack(states), made_with)
