"""BLIP's views of an image: the validation resize, and the protocol's augmentation for training."""

from functools import cache
from typing import ClassVar

import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms import InterpolationMode, v2

GRAY = 128  # what a turned or shifted image leaves empty, in BLIP's own augmentation


class BlipRandAugment(v2.RandAugment):
    """torchvision's RandAugment (Cubuk et al., 2020) with BLIP's ten operations and BLIP's ranges.

    BLIP counts magnitudes from 0 to 10. At 5, the protocol's, a shear is 0.15, a turn 15 degrees, a shift 5 pixels
    of 384, and brightness and sharpness keep their factor 1: those two do nothing there, as in BLIP. Every drawn
    operation is applied; BLIP's own code leaves out each with probability 0.5, of which the protocol says nothing.
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
        super().__init__(operations, magnitude, 11, interpolation=InterpolationMode.BILINEAR, fill=GRAY)


def val_view(image: Image.Image, side: int) -> Tensor:
    """`(3, side, side)` uint8: the whole image, resized (bicubic) whatever its shape, as BLIP does."""
    return v2.functional.pil_to_tensor(image.resize((side, side), Image.Resampling.BICUBIC))


def train_view(image: Image.Image, side: int, seed: int) -> Tensor:
    """`(3, side, side)` uint8: a random crop of half to all of the area, resized, flipped half the time, augmented."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return v2.functional.pil_to_tensor(_augmentation(side)(image))


@cache
def _augmentation(side: int) -> v2.Compose:
    crop = v2.RandomResizedCrop(side, scale=(0.5, 1.0), interpolation=InterpolationMode.BICUBIC)
    return v2.Compose([crop, v2.RandomHorizontalFlip(), BlipRandAugment()])
