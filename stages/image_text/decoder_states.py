"""Image states that captions are decoded from: those of BLIP's image tower, or of CATR's encoder."""

from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from stages.data.dataset import MappedDataset
from stages.data.images import read_image
from stages.data.manifest import Row
from stages.data.views import native_view
from stages.features.batching import batch_by_key
from stages.features.loading import iterate_shards
from stages.features.shards import Shards
from stages.features.tokens import FeatureMetadata, ViewFeatures, open_feature_writer
from stages.image_text.pixels import split_batches, val_dataset
from stages.image_text.towers import Towers
from stages.models import catr
from stages.models.catr import Catr
from stages.models.compute import mixed_precision
from stages.params.compute import Compute

CATR_BATCH = 16  # images of one size per batch of CATR's encoder


def encode_states(towers: Towers, rows: tuple[Row, ...], shards: Shards, metadata: FeatureMetadata) -> None:
    """Write BLIP's hidden states of every row, class token first, as a grid `(1, 1 + patches, dim)`."""
    side = towers.pixels.side
    view = native_view(side, side)
    dataset = val_dataset(rows, side)
    for path, batches in iterate_shards(shards, dataset, split_batches, towers.workers, "encode val images"):
        with open_feature_writer(path, metadata) as writer:
            for indices, pixels in batches:
                batch_states = towers.image_states(pixels).half().cpu()
                for index, states in zip(indices, batch_states, strict=True):
                    writer.add(ViewFeatures(rows[index].image_id, 0, view, states[None]))


@torch.inference_mode()
def encode_grids(
    model: Catr, rows: tuple[Row, ...], shards: Shards, metadata: FeatureMetadata, compute: Compute
) -> None:
    """Write CATR's encoder output of every row, a grid of the image's shape.

    Sort `rows` by size: consecutive images of one size share a batch.
    """
    device = next(model.parameters()).device
    dataset = MappedDataset(rows, _load_catr_pixels)

    def split_by_size(span: range) -> Iterator[list[int]]:
        return batch_by_key(span, lambda index: (rows[index].height, rows[index].width), lambda _: CATR_BATCH)

    for path, batches in iterate_shards(shards, dataset, split_by_size, compute.workers, "encode val images"):
        with open_feature_writer(path, metadata) as writer:
            for indices, pixels in batches:
                with mixed_precision(compute):
                    memory = model.memory(pixels.to(device, non_blocking=True)).half().cpu()
                height, width = pixels.shape[2:]
                for index, grid in zip(indices, memory, strict=True):
                    writer.add(ViewFeatures(rows[index].image_id, 0, native_view(height, width), grid))


def _load_catr_pixels(row: Row) -> Tensor:
    """Return the whole image in its own aspect ratio, as CATR expects it, `(3, H, W)`."""
    return catr.preprocess(read_image(Path(row.image)))
