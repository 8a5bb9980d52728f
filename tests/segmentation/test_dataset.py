"""Cached tokens and masks are what is on disk, whatever part of them is kept in memory."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import write_mask

from stages.data.views import native_view
from stages.features.tokens import GROUP, ViewFeatures
from stages.segmentation import dataset
from stages.segmentation.dataset import TrainViews, ValImages

SIDE = 4
COUNT = GROUP + 3  # the last group is not full


@pytest.fixture
def masks(tmp_path) -> dict[str, Path]:
    paths = {str(number): tmp_path / f"{number}.png" for number in range(COUNT)}
    for number, path in enumerate(paths.values()):
        write_mask(path, np.full((SIDE, SIDE), number))
    return paths


@pytest.fixture
def table():
    """A table of one view per image, in two groups; the tokens of image i are all i."""
    view = native_view(SIDE, SIDE)
    tokens = [torch.full((2, 2, 3), float(number), dtype=torch.float16) for number in range(COUNT)]
    rows = [ViewFeatures(str(number), 0, view, tokens[number]) for number in range(COUNT)]
    groups = [rows[:GROUP], rows[GROUP:]]
    return SimpleNamespace(num_groups=2, read_group=groups.__getitem__, groups_for_view=lambda view: [0, 1])


def test_a_view_has_the_tokens_and_masks_of_all_images(table, masks):
    tokens, epoch_masks = TrainViews(table, masks, views=1, epochs=1)[0]
    assert tokens.shape == (COUNT, 2, 2, 3)
    assert tokens.dtype == torch.float16
    assert tokens[:, 0, 0, 0].tolist() == list(range(COUNT))
    assert epoch_masks[:, 0, 0].tolist() == list(range(COUNT))


@pytest.mark.parametrize("kept", [0, 5, COUNT])
def test_masks_beyond_the_limit_are_read_again(kept, table, masks, monkeypatch):
    reads = []
    read_mask = dataset.read_mask
    monkeypatch.setattr(dataset, "read_mask", lambda path: reads.append(path) or read_mask(path))
    monkeypatch.setattr(dataset, "MAX_MASK_BYTES", kept * SIDE * SIDE)
    images = ValImages(table, masks)
    for _ in range(2):
        values = [int(mask[0, 0]) for batch in images for mask in batch.masks]
        assert values == list(range(COUNT))
    assert len(reads) == COUNT + (COUNT - kept)
