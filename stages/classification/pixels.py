"""A classifier's views of an image: the middle square, plain or augmented as in the second report."""

from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path

import torch
from PIL import Image, ImageOps
from torch import Tensor
from torch.utils.data import Dataset
from torchvision.transforms import v2

from stages.data.images import read_image


def plain_view(image: Image.Image, size: int) -> Tensor:
    """`(3, size, size)` uint8: the largest square in the middle, resized (bicubic)."""
    return v2.functional.pil_to_tensor(_middle(size)(image))


def augmented_view(image: Image.Image, size: int, seed: int) -> Tensor:
    """`(3, size, size)` uint8: the report's list of transforms, with what is random drawn from `seed`."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return v2.functional.pil_to_tensor(_augmentation(size)(image))


def _middle(size: int) -> partial:
    return partial(ImageOps.fit, size=(size, size), method=Image.Resampling.BICUBIC)


@cache
def _augmentation(size: int) -> v2.Compose:
    between = (0.5, 1.5)
    return v2.Compose(
        [
            v2.RandomHorizontalFlip(),
            v2.Lambda(_middle(size)),
            v2.RandomRotation(30),
            v2.ColorJitter(brightness=between, contrast=between, saturation=between),
            v2.RandomPerspective(0.2, p=0.5),
        ]
    )


@dataclass(frozen=True)
class ImageViews(Dataset):
    """Image `i` as `(pixels (3, size, size) uint8, label)`: augmented with its own seed, or plain without seeds."""

    files: list[Path]
    labels: list[int]
    size: int
    seeds: list[int] | None = None

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        image = read_image(self.files[index])
        if self.seeds is None:
            return plain_view(image, self.size), self.labels[index]
        return augmented_view(image, self.size, self.seeds[index]), self.labels[index]
