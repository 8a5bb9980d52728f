"""A trained head with its frozen backbone: images in, masks out."""

import json
from pathlib import Path

import numpy as np
from PIL import Image

from stages.models import vit
from stages.models.compute import get_device
from stages.models.weights import read_metadata, read_weights
from stages.params.compute import FLOAT32, Compute
from stages.segmentation.evaluation import predict_masks
from stages.segmentation.heads import build_head
from stages.segmentation.heads.base import SegmentationHead
from stages.segmentation.patch_features import feature_batches


class Segmenter:
    """Predicts masks as the run that trained the head did for the validation images."""

    def __init__(self, backbone: vit.Backbone, head: SegmentationHead, compute: Compute = FLOAT32):
        self.backbone = backbone.to(get_device())
        self.head = head.to(get_device()).eval()
        self.compute = compute

    def predict(self, images: np.ndarray) -> np.ndarray:
        """Class indices `(N, H, W)` uint8 of RGB images `(N, H, W, 3)` uint8."""
        size = images.shape[1:3]
        batches = feature_batches(self.backbone, images, self.compute)
        return np.concatenate([predict_masks(self.head, features, size) for features in batches])

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
        (features,) = feature_batches(self.backbone, np.asarray(resized)[None], self.compute)
        return predict_masks(self.head, features, (image.height, image.width))[0]


def load_head(path: Path) -> tuple[SegmentationHead, tuple[str, ...]]:
    """Load a head that `train_head` wrote, and the names of its classes."""
    description = json.loads(read_metadata(path)["head"])
    head = build_head(**description["config"])
    head.load_state_dict(read_weights(path))
    return head, tuple(description["classes"])
