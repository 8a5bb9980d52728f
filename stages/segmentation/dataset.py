"""The data as heads see it: cached tokens, with masks cut as their views were."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from stages.data.images import read_mask
from stages.data.views import View, crop_mask
from stages.features.batching import batch_by_key
from stages.features.tokens import FeatureTable

MAX_BATCH_PIXELS = 2**16  # whose logits are held at full size at once: 10 images of 80x80, one of 256x256


class TrainViews:
    """The training set as epochs see it: tokens and equally cut masks of one view of every image.

    Loads a view when it is asked for, and keeps views only where `epochs` will ask again.
    """

    def __init__(self, table: FeatureTable, masks: dict[str, Path], *, views: int, epochs: int):
        self.table, self.masks, self.views = table, masks, views
        self._load = lru_cache(maxsize=views if views < epochs else 1)(self._load_view)

    def epoch(self, epoch: int) -> tuple[Tensor, Tensor]:
        """Tokens `(N, rows, columns, dim)` float16 and masks `(N, crop, crop)` uint8 of epoch `epoch`, from 0."""
        return self._load(epoch % self.views)

    def _load_view(self, view: int) -> tuple[Tensor, Tensor]:
        rows = [row for group in self.table.groups_for_view(view) for row in self.table.read_group(group)]
        masks = np.stack([crop_mask(read_mask(self.masks[row.image_id]), row.view) for row in rows])
        return torch.stack([row.tokens for row in rows]), torch.from_numpy(masks)


def _at_once(view: View) -> int:
    """How many images of a size are predicted at once."""
    return max(1, MAX_BATCH_PIXELS // (view.crop_height * view.crop_width))


@dataclass(frozen=True)
class ValBatch:
    """Validation images of one size: ids, tokens `(n, rows, columns, dim)`, masks `(n, H, W)` uint8."""

    image_ids: list[str]
    tokens: Tensor
    masks: np.ndarray


class ValImages:
    """The validation set at native size, streamed from the table in bounded batches; masks stay in memory."""

    def __init__(self, table: FeatureTable, masks: dict[str, Path]):
        self.table, self.paths, self._masks = table, masks, {}

    def __iter__(self) -> Iterator[ValBatch]:
        for group in range(self.table.num_groups):
            for rows in batch_by_key(self.table.read_group(group), lambda row: row.view, _at_once):
                yield self._batch(rows)

    def _batch(self, rows) -> ValBatch:
        ids = [row.image_id for row in rows]
        masks = np.stack([self._mask(image_id) for image_id in ids])
        return ValBatch(ids, torch.stack([row.tokens for row in rows]), masks)

    def _mask(self, image_id: str) -> np.ndarray:
        if image_id not in self._masks:
            self._masks[image_id] = read_mask(self.paths[image_id])
        return self._masks[image_id]
