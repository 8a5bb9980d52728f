"""Training and validation data of the heads: cached tokens, and masks cut as their views were."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from stages.data.images import read_mask
from stages.data.views import View, crop_mask
from stages.features.batching import batch_by_key
from stages.features.tokens import FeatureTable, ViewFeatures

# Pixels with full-size logits in memory at a time: 10 images of 80x80, one of 256x256; 5.5 MB with 21 classes.
MAX_BATCH_PIXELS = 2**16


class TrainViews:
    """Per epoch, the tokens and masks of one view of every training image.

    Views are loaded on demand, and cached only if an epoch will use them again.
    """

    def __init__(self, table: FeatureTable, masks: Mapping[str, Path], *, views: int, epochs: int):
        self.table = table
        self.masks = masks
        self.views = views
        self._load = lru_cache(maxsize=views if views < epochs else 1)(self._load_view)

    def epoch(self, epoch: int) -> tuple[Tensor, Tensor]:
        """Return tokens `(N, rows, columns, dim)` float16 and masks `(N, crop, crop)` uint8 of an epoch, from 0."""
        return self._load(epoch % self.views)

    def _load_view(self, view: int) -> tuple[Tensor, Tensor]:
        rows = [row for group in self.table.groups_for_view(view) for row in self.table.read_group(group)]
        masks = np.stack([crop_mask(read_mask(self.masks[row.image_id]), row.view) for row in rows])
        return torch.stack([row.tokens for row in rows]), torch.from_numpy(masks)


@dataclass(frozen=True)
class ValBatch:
    """Validation images of one size: IDs, tokens `(n, rows, columns, dim)`, masks `(n, H, W)` uint8."""

    image_ids: list[str]
    tokens: Tensor
    masks: np.ndarray


class ValImages:
    """The validation set at native size, in batches of at most `MAX_BATCH_PIXELS`.

    Tokens are read from the table in every epoch; masks stay in memory.
    """

    def __init__(self, table: FeatureTable, masks: Mapping[str, Path]):
        self.table = table
        self.mask_paths = masks
        self._masks: dict[str, np.ndarray] = {}

    def __iter__(self) -> Iterator[ValBatch]:
        for group in range(self.table.num_groups):
            for rows in batch_by_key(self.table.read_group(group), lambda row: row.view, _batch_size):
                yield self._batch(rows)

    def _batch(self, rows: list[ViewFeatures]) -> ValBatch:
        image_ids = [row.image_id for row in rows]
        masks = np.stack([self._mask(image_id) for image_id in image_ids])
        return ValBatch(image_ids, torch.stack([row.tokens for row in rows]), masks)

    def _mask(self, image_id: str) -> np.ndarray:
        if image_id not in self._masks:
            self._masks[image_id] = read_mask(self.mask_paths[image_id])
        return self._masks[image_id]


def _batch_size(view: View) -> int:
    return max(1, MAX_BATCH_PIXELS // (view.crop_height * view.crop_width))
