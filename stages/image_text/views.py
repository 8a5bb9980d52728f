"""BLIP's views of a manifest's images, cut by a loader's workers."""

from collections.abc import Iterator
from pathlib import Path

from torch import Tensor
from torch.utils.data import Dataset

from stages.data.images import read_image
from stages.data.manifest import Row
from stages.features.loading import chunked
from stages.image_text.pixels import train_view, val_view

BATCH = 32  # views that the image tower sees at once


class Views(Dataset):
    """`(index, pixels (3, side, side) uint8)` of every row: augmented with its own seed, or as for validation."""

    def __init__(self, rows: tuple[Row, ...], side: int, seeds: list[int] | None = None):
        self.rows, self.side, self.seeds = rows, side, seeds

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> tuple[int, Tensor]:
        image = read_image(Path(self.rows[index].image))
        if self.seeds is None:
            return index, val_view(image, self.side)
        return index, train_view(image, self.side, self.seeds[index])


def in_batches(span: range) -> Iterator[list[int]]:
    """A shard's views as the image tower takes them."""
    return chunked(span, BATCH)
