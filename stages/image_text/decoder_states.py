"""What captions are decoded from: all states of validation images, of BLIP's image tower or of CATR's encoder."""

from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.data import Dataset

from stages.data.images import read_image
from stages.data.manifest import Row
from stages.data.views import View
from stages.features.batching import batch_by_key
from stages.features.loading import iterate_shards
from stages.features.shards import Shards
from stages.features.tokens import FeatureMetadata, ViewFeatures, open_feature_writer
from stages.image_text.towers import Towers
from stages.image_text.views import Views, in_batches
from stages.models import catr
from stages.models.catr import Catr
from stages.models.compute import mixed_precision
from stages.params.compute import Compute

AT_ONCE = 16  # images of one size that CATR's encoder sees at once


def encode_states(towers: Towers, rows: tuple[Row, ...], shards: Shards, provenance: FeatureMetadata) -> None:
    """BLIP's hidden states of every row, the class token first, as a grid of one line."""
    side = towers.pixels.side
    view = View(side, side, 0, 0, side, side, False)
    for path, arriving in iterate_shards(shards, Views(rows, side), in_batches, towers.workers, "encode val images"):
        with open_feature_writer(path, provenance) as writer:
            for some, pixels in arriving:
                for index, one in zip(some, towers.image_states(pixels).half().cpu(), strict=True):
                    writer.add(ViewFeatures(rows[index].image_id, 0, view, one[None]))


class Photographs(Dataset):
    """`(index, pixels (3, H, W))` of every row as CATR wants it: whole, in its own shape."""

    def __init__(self, rows: tuple[Row, ...]):
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> tuple[int, Tensor]:
        return index, catr.preprocess(read_image(Path(self.rows[index].image)))


@torch.inference_mode()
def encode_grids(
    model: Catr, rows: tuple[Row, ...], shards: Shards, provenance: FeatureMetadata, compute: Compute
) -> None:
    """CATR's memory of every row, a grid of its image's shape; `rows` of one size that are neighbors share a batch."""
    device = next(model.parameters()).device

    def alike(span: range) -> Iterator[list[int]]:
        return batch_by_key(span, lambda index: (rows[index].height, rows[index].width), lambda _: AT_ONCE)

    for path, arriving in iterate_shards(shards, Photographs(rows), alike, compute.workers, "encode val images"):
        with open_feature_writer(path, provenance) as writer:
            for some, pixels in arriving:
                with mixed_precision(compute):
                    memory = model.memory(pixels.to(device, non_blocking=True)).half().cpu()
                view = View(*pixels.shape[2:], 0, 0, *pixels.shape[2:], False)
                for index, one in zip(some, memory, strict=True):
                    writer.add(ViewFeatures(rows[index].image_id, 0, view, one))
