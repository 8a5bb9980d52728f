"""Image states that captions are decoded from: those of BLIP's image tower, or of CATR's encoder."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from torch import Tensor, nn

from stages.data.dataset import MappedDataset
from stages.data.images import read_image
from stages.data.manifest import Row
from stages.data.views import native_view
from stages.features.batching import batch_by_key
from stages.features.extraction import TokenJob
from stages.features.tokens import FeatureMetadata, ViewFeatures
from stages.image_text.pixels import val_dataset
from stages.image_text.towers_job import TowersJob
from stages.models import catr
from stages.models.catr import Catr
from stages.models.compute import get_device, mixed_precision, prepare_model
from stages.params.compute import Compute

CATR_BATCH = 16  # images of one size per batch of CATR's encoder


@dataclass
class BlipStatesJob(TowersJob, TokenJob):
    """BLIP's hidden states of every row, class token first, as a grid `(1, 1 + patches, dim)`."""

    rows: tuple[Row, ...]
    metadata: FeatureMetadata

    @property
    def dataset(self) -> MappedDataset:
        return val_dataset(self.rows, self.towers.pixels.side)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.towers.image_states(inputs).half()[:, None]

    def view_features(self, index: int, tokens: Tensor) -> ViewFeatures:
        side = self.towers.pixels.side
        return ViewFeatures(self.rows[index].image_id, 0, native_view(side, side), tokens)


@dataclass
class CatrStatesJob(TokenJob):
    """CATR's encoder output of every row, a grid of the image's shape.

    Sort `rows` by size: consecutive images of one size share a batch.
    """

    catr: Catr
    rows: tuple[Row, ...]
    metadata: FeatureMetadata
    compute: Compute

    @property
    def model(self) -> nn.Module:
        return self.catr

    def prepare(self) -> None:
        prepare_model(self.catr, self.compute)

    @property
    def dataset(self) -> MappedDataset:
        return MappedDataset(self.rows, partial(_load_catr_pixels, self.catr.config.longer_side))

    def split_batches(self, rows: range) -> Iterator[list[int]]:
        return batch_by_key(rows, lambda index: (self.rows[index].height, self.rows[index].width), lambda _: CATR_BATCH)

    def forward(self, inputs: Tensor) -> Tensor:
        with mixed_precision(self.compute):
            return self.catr.memory(inputs.to(get_device(), non_blocking=True)).half()

    def view_features(self, index: int, tokens: Tensor) -> ViewFeatures:
        row = self.rows[index]
        height, width = catr.resized_shape(row.height, row.width, self.catr.config.longer_side)
        return ViewFeatures(row.image_id, 0, native_view(height, width), tokens)


def _load_catr_pixels(longer_side: int, row: Row) -> Tensor:
    """Return the whole image in its own aspect ratio, as CATR expects it, `(3, H, W)`."""
    return catr.preprocess(read_image(Path(row.image)), longer_side)
