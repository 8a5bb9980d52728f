"""Patch features of images in memory, as the stage `extract_segmentation` computes those of files."""

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from stages.models.compute import get_device, mixed_precision
from stages.models.vit import Backbone
from stages.params.compute import FLOAT32, Compute
from stages.segmentation.extract import BATCH, PIXELS


def patch_features(backbone: Backbone, images: np.ndarray, compute: Compute = FLOAT32) -> np.ndarray:
    """Features `(N, rows, columns, dim)` float16 of RGB images `(N, H, W, 3)` uint8.

    Moves the backbone to this machine's device. Raises `ValueError` if the images are smaller than a patch.
    """
    return torch.cat([batch.cpu() for batch in feature_batches(backbone, images, compute)]).numpy()


@torch.inference_mode()
def feature_batches(backbone: Backbone, images: np.ndarray, compute: Compute) -> Iterator[Tensor]:
    """Yield the features of consecutive images on the device, `(B, rows, columns, dim)` float16."""
    device = get_device()
    backbone.to(device)
    _, height, width, _ = images.shape
    # Convolutions and products of matrices round differently for another memory layout or batch size: about one pixel
    # in a million would get another class. So both are those of `extract_segmentation`.
    pixels = torch.tensor(images).permute(0, 3, 1, 2).contiguous()  # channels first
    for batch in pixels.split(max(1, min(BATCH, PIXELS // (height * width)))):
        with mixed_precision(compute):
            yield backbone(batch.to(device)).patches.half()
