"""A classifier's input: the central square of an image, plain or augmented as in the original."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path

import torch
from PIL import Image, ImageOps
from torch import Tensor
from torch.utils.data import Dataset
from torchvision.transforms import v2

from stages.data.images import read_image
from stages.data.manifest import Row


def plain_view(image: Image.Image, size: int) -> Tensor:
    """`(3, size, size)` uint8: the largest central square, resized (bicubic)."""
    return v2.functional.pil_to_tensor(_center_square(size)(image))


def augmented_view(image: Image.Image, size: int, seed: int) -> Tensor:
    """`(3, size, size)` uint8: the original's list of transforms, with all random values drawn from `seed`."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return v2.functional.pil_to_tensor(_augmentation(size)(image))


def _center_square(size: int) -> partial:
    return partial(ImageOps.fit, size=(size, size), method=Image.Resampling.BICUBIC)


@cache
def _augmentation(size: int) -> v2.Compose:
    """The original's transforms, in its order and with its values."""
    jitter = (0.5, 1.5)
    return v2.Compose(
        [
            v2.RandomHorizontalFlip(),
            v2.Lambda(_center_square(size)),
            v2.RandomRotation(30),
            v2.ColorJitter(brightness=jitter, contrast=jitter, saturation=jitter),
            v2.RandomPerspective(0.2, p=0.5),
        ]
    )


@dataclass(frozen=True)
class ImageViews(Dataset):
    """Labeled images as `(pixels (3, size, size) uint8, label)`.

    With `seeds`, one per image, views are augmented; without, plain. A view depends only on the image and its seed,
    so the number of data loading workers does not change it.
    """

    rows: Sequence[Row]
    size: int
    seeds: Sequence[int] | None = None

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        row = self.rows[index]
        assert row.label is not None  # `finetune` checks that every row has a label
        image = read_image(Path(row.image))
        if self.seeds is None:
            return plain_view(image, self.size), row.label
        return augmented_view(image, self.size, self.seeds[index]), row.label
