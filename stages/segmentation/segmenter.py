"""A trained head with its frozen backbone: images in, masks out."""

import json
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from stages.models import vit
from stages.models.compute import get_device, mixed_precision
from stages.models.weights import read_metadata, read_weights
from stages.params.compute import Compute
from stages.segmentation.dataset import MAX_BATCH_PIXELS
from stages.segmentation.extract import BATCH, PIXELS
from stages.segmentation.heads import build_head
from stages.segmentation.heads.base import SegmentationHead
from stages.segmentation.training import predict_masks


class Segmenter:
    """Predicts masks as the run that trained the head did for the validation images."""

    def __init__(self, backbone: vit.Backbone, head: SegmentationHead, compute: Compute):
        self.backbone = backbone.to(get_device())
        self.head = head.to(get_device()).eval()
        self.compute = compute

    @torch.inference_mode()
    def predict(self, images: np.ndarray) -> np.ndarray:
        """Class indices `(N, H, W)` uint8 of RGB images `(N, H, W, 3)` uint8."""
        _, height, width, _ = images.shape
        # Convolutions and products of matrices round differently for another memory layout or batch size: about one
        # pixel in a million would get another class. So both are those of `extract_segmentation` and `train_head`.
        pixels = torch.tensor(images).permute(0, 3, 1, 2).contiguous()  # channels first
        backbone_batch = max(1, min(BATCH, PIXELS // (height * width)))
        head_batch = max(1, MAX_BATCH_PIXELS // (height * width))
        masks = []
        for batch in pixels.split(backbone_batch):
            for tokens in self._extract(batch).split(head_batch):
                masks.append(predict_masks(self.head, tokens, (height, width)))
        return torch.cat(masks).numpy()

    @torch.inference_mode()
    def predict_image(self, image: Image.Image, longest: int) -> np.ndarray:
        """Class indices `(H, W)` uint8 of an RGB image of any size.

        An image whose longer side has more than `longest` pixels is shrunk for the models: the time of a ViT grows with
        the square of the pixels. Raises `ValueError` if the image has too few patches for the backbone or the head.
        """
        shrink = min(1.0, longest / max(image.size))
        size = (max(1, round(image.width * shrink)), max(1, round(image.height * shrink)))
        resized = image.resize(size, Image.Resampling.BILINEAR)
        rows, columns = self.backbone.grid(resized.height, resized.width)
        if min(rows, columns) < self.head.min_grid:
            needed = f"{self.head.min_grid}x{self.head.min_grid}"
            raise ValueError(f"{image.width}x{image.height} pixels give {rows}x{columns} patches; needs {needed}")
        pixels = torch.tensor(np.asarray(resized)).permute(2, 0, 1)[None]
        return predict_masks(self.head, self._extract(pixels), (image.height, image.width))[0].numpy()

    def _extract(self, pixels: Tensor) -> Tensor:
        with mixed_precision(self.compute):
            return self.backbone(pixels.to(get_device())).patches.half()  # as they are cached for the training


def load_head(path: Path) -> tuple[SegmentationHead, tuple[str, ...]]:
    """Load a head that `train_head` wrote, and the names of its classes."""
    description = json.loads(read_metadata(path)["head"])
    head = build_head(**description["config"])
    head.load_state_dict(read_weights(path))
    return head, tuple(description["classes"])
