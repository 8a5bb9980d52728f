"""Image views for BLIP: the validation resize, and the augmentation for training."""

from collections.abc import Iterable
from functools import cache, partial
from pathlib import Path
from typing import Any, ClassVar

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

    BLIP counts magnitudes from 0 to 10. At 5, the original's, a shear is 0.15, a rotation 15 degrees, a shift 5 pixels
    of 384, and brightness and sharpness keep their factor 1: those two do nothing, as in BLIP. Each drawn operation is
    applied with `probability`, 0.5 in the original, or else skipped. The original's auto-contrast overflows uint8 where
    the darkest value is not 0; Pillow's, used here, does not.
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

    def __init__(self, probability: float, operations: int = 2, magnitude: int = 5):
        # 11 bins: magnitudes 0 to 10.
        super().__init__(operations, magnitude, 11, interpolation=InterpolationMode.BILINEAR, fill=GRAY)
        self.probability = probability

    def _apply_image_or_video_transform(self, image: Any, *operation: Any, **settings: Any) -> Any:
        """Apply one operation, or return `image` as it is. At probability 1 nothing is drawn."""
        if self.probability < 1 and float(torch.rand(())) >= self.probability:
            return image
        return super()._apply_image_or_video_transform(image, *operation, **settings)


def val_view(image: Image.Image, side: int) -> Tensor:
    """Return `(3, side, side)` uint8: the whole image, resized (bicubic) regardless of its shape, as BLIP does."""
    return v2.functional.pil_to_tensor(image.resize((side, side), Image.Resampling.BICUBIC))


def train_view(image: Image.Image, side: int, seed: int, augment_probability: float) -> Tensor:
    """Return `(3, side, side)` uint8: a random crop of 0.5 to 1 of the area, resized, flipped with p 0.5, augmented.

    Depends only on the arguments; leaves the global random state as it was.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return v2.functional.pil_to_tensor(_augmentation(side, augment_probability)(image))


@cache
def _augmentation(side: int, augment_probability: float) -> v2.Compose:
    crop = v2.RandomResizedCrop(side, scale=(0.5, 1.0), interpolation=InterpolationMode.BICUBIC)
    return v2.Compose([crop, v2.RandomHorizontalFlip(), BlipRandAugment(augment_probability)])


def val_dataset(rows: tuple[Row, ...], side: int) -> MappedDataset:
    """Return a dataset of `(index, pixels)`: the validation view of every row, `(3, side, side)` uint8."""
    return MappedDataset(rows, partial(_load_val_view, side=side))


def train_dataset(rows: tuple[Row, ...], side: int, seeds: list[int], augment_probability: float) -> MappedDataset:
    """Return a dataset of `(index, pixels)`: a training view of every row with its seed, `(3, side, side)` uint8."""
    load = partial(_load_train_view, side=side, augment_probability=augment_probability)
    return MappedDataset(list(zip(rows, seeds, strict=True)), load)


def _load_val_view(row: Row, side: int) -> Tensor:
    return val_view(read_image(Path(row.image)), side)


def _load_train_view(row_and_seed: tuple[Row, int], side: int, augment_probability: float) -> Tensor:
    row, seed = row_and_seed
    return train_view(read_image(Path(row.image)), side, seed, augment_probability)


def split_batches(span: range) -> Iterable[list[int]]:
    """Divide the view indices of a shard into batches."""
    return BatchSampler(span, BATCH, drop_last=False)
