"""Image views for BLIP: the validation resize, and the protocol's augmentation for training."""

from collections.abc import Iterable
from functools import cache, partial
from pathlib import Path
from typing import ClassVar

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import BatchSampler
from torchvision.transforms import InterpolationMode, v2

from stages.data.dataset import MappedDataset
from stages.data.images import read_image
from stages.data.manifest import Row

BATCH = 32  # views per batch of the image tower
GRAY = 128  # fill of pixels that a rotation or shift leaves empty, as in BLIP's own augmentation


class BlipRandAugment(v2.RandAugment):
    """torchvision's RandAugment (Cubuk et al., 2020) with BLIP's ten operations and BLIP's ranges.

    BLIP counts magnitudes from 0 to 10. At 5, the protocol's, a shear is 0.15, a rotation 15 degrees, a shift 5 pixels
    of 384, and brightness and sharpness keep their factor 1: those two do nothing, as in BLIP. Every sampled operation
    is applied. BLIP's own code skips each with probability 0.5; the protocol does not mention that.
    """

    _AUGMENTATION_SPACE: ClassVar = {
        "Identity": (lambda bins, height, width: None, False),
        "AutoContrast": (lambda bins, height, width: None, False),
        "Equalize": (lambda bins, height, width: None, False),
        "Brightness": (lambda bins, height, width: torch.linspace(-0.9, 0.9, bins), False),
        "Sharpness": (lambda bins, height, width: torch.linspace(-0.9, 0.9, bins), False),
        "ShearX": (lambda bins, height, width: torch.linspace(0, 0.3, bins), True),
        "ShearY": (lambda bins, height, width: torch.linspace(0, 0.3, bins), True),
        "TranslateX": (lambda bins, height, width: torch.linspace(0, 10 / 384 * width, bins), True),
        "TranslateY": (lambda bins, height, width: torch.linspace(0, 10 / 384 * height, bins), True),
        "Rotate": (lambda bins, height, width: torch.linspace(0, 30, bins), True),
    }

    def __init__(self, operations: int = 2, magnitude: int = 5):
        # 11 bins: magnitudes 0 to 10.
        super().__init__(operations, magnitude, 11, interpolation=InterpolationMode.BILINEAR, fill=GRAY)


def val_view(image: Image.Image, side: int) -> Tensor:
    """Return `(3, side, side)` uint8: the whole image, resized (bicubic) regardless of its shape, as BLIP does."""
    return v2.functional.pil_to_tensor(image.resize((side, side), Image.Resampling.BICUBIC))


def train_view(image: Image.Image, side: int, seed: int) -> Tensor:
    """Return `(3, side, side)` uint8: a random crop of 0.5 to 1 of the area, resized, flipped with p 0.5, augmented.

    Depends only on the image and `seed`; leaves the global random state as it was.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return v2.functional.pil_to_tensor(_augmentation(side)(image))


@cache
def _augmentation(side: int) -> v2.Compose:
    crop = v2.RandomResizedCrop(side, scale=(0.5, 1.0), interpolation=InterpolationMode.BICUBIC)
    return v2.Compose([crop, v2.RandomHorizontalFlip(), BlipRandAugment()])


def view_dataset(rows: tuple[Row, ...], side: int, seeds: list[int] | None = None) -> MappedDataset:
    """Return a dataset of `(index, pixels)`: a training view per row with its seed, or validation views without seeds.

    Pixels are `(3, side, side)` uint8.
    """
    if seeds is None:
        return MappedDataset(rows, partial(_load_val_view, side=side))
    return MappedDataset(list(zip(rows, seeds, strict=True)), partial(_load_train_view, side=side))


def _load_val_view(row: Row, side: int) -> Tensor:
    return val_view(read_image(Path(row.image)), side)


def _load_train_view(row_and_seed: tuple[Row, int], side: int) -> Tensor:
    row, seed = row_and_seed
    return train_view(read_image(Path(row.image)), side, seed)


def split_batches(span: range) -> Iterable[list[int]]:
    """Divide the view indices of a shard into batches."""
    return BatchSampler(span, BATCH, drop_last=False)
