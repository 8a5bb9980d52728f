"""Training and validation data of the heads: cached tokens, and masks cut as their views were."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from stages.data.images import read_mask
from stages.data.views import View, crop_mask
from stages.features.batching import batch_by_key
from stages.features.tokens import GROUP, FeatureTable, ViewFeatures

# Pixels with full-size logits in memory at a time: 10 images of 80x80, one of 256x256; 5.5 MB with 21 classes.
MAX_BATCH_PIXELS = 2**16
MAX_MASK_BYTES = 2**30  # of validation masks in memory: 5,700 of VOC's; further ones are read in every epoch


class TrainViews(Sequence[tuple[Tensor, Tensor]]):
    """The views, each as the tokens `(N, rows, columns, dim)` float16 and masks `(N, crop, crop)` uint8 of all images.

    They are loaded on demand, and cached only if one of the `epochs` will use them again.
    """

    def __init__(self, table: FeatureTable, masks: Mapping[str, Path], *, views: int, epochs: int):
        self.table = table
        self.masks = masks
        self.views = views
        self._load = lru_cache(maxsize=views if views < epochs else 1)(self._load_view)

    def __len__(self) -> int:
        return self.views

    def __getitem__(self, view):
        return self._load(view)

    def _load_view(self, view: int) -> tuple[Tensor, Tensor]:
        groups = self.table.groups_for_view(view)
        tokens: Tensor | None = None
        masks: list[np.ndarray] = []
        for group in groups:
            for row in self.table.read_group(group):
                if tokens is None:
                    # Filled row by row: stacking all rows at the end would hold every token twice. The last rows may
                    # stay unused, as the last group may be shorter.
                    tokens = torch.empty(GROUP * len(groups), *row.tokens.shape, dtype=row.tokens.dtype)
                tokens[len(masks)] = row.tokens
                masks.append(crop_mask(read_mask(self.masks[row.image_id]), row.view))
        assert tokens is not None  # a table has views
        return tokens[: len(masks)], torch.from_numpy(np.stack(masks))


@dataclass(frozen=True)
class ValBatch:
    """Validation images of one size: IDs, tokens `(n, rows, columns, dim)`, masks `(n, H, W)` uint8."""

    image_ids: list[str]
    tokens: Tensor
    masks: np.ndarray


class ValImages:
    """The validation set at native size, in batches of at most `MAX_BATCH_PIXELS`.

    Tokens are read from the table in every epoch; masks stay in memory, up to `MAX_MASK_BYTES`.
    """

    def __init__(self, table: FeatureTable, masks: Mapping[str, Path]):
        self.table = table
        self.mask_paths = masks
        self._masks: dict[str, np.ndarray] = {}
        self._mask_bytes = 0

    def __iter__(self) -> Iterator[ValBatch]:
        for group in range(self.table.num_groups):
            for rows in batch_by_key(self.table.read_group(group), lambda row: row.view, _batch_size):
                yield self._batch(rows)

    def _batch(self, rows: list[ViewFeatures]) -> ValBatch:
        image_ids = [row.image_id for row in rows]
        masks = np.stack([self._mask(image_id) for image_id in image_ids])
        return ValBatch(image_ids, torch.stack([row.tokens for row in rows]), masks)

    def _mask(self, image_id: str) -> np.ndarray:
        if image_id in self._masks:
            return self._masks[image_id]
        mask = read_mask(self.mask_paths[image_id])
        if self._mask_bytes + mask.nbytes <= MAX_MASK_BYTES:
            self._masks[image_id] = mask
            self._mask_bytes += mask.nbytes
        return mask


def _batch_size(view: View) -> int:
    return max(1, MAX_BATCH_PIXELS // (view.crop_height * view.crop_width))
