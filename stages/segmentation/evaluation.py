"""Predict masks with a head, and count them against the true ones."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from stages.segmentation.dataset import MAX_BATCH_PIXELS, ValBatch
from stages.segmentation.iou import confusion, iou
from stages.segmentation.live_head import LiveHead
from stages.segmentation.training import Array, copy_batch
from stages.segmentation.upsampling import upsample


@torch.inference_mode()
def predict_masks(head: nn.Module, features: Array, size: Sequence[int]) -> np.ndarray:
    """Predicted classes `(N, *size)` uint8 of features `(N, rows, columns, dim)`: the argmax of upsampled logits."""
    device = next(head.parameters()).device
    head.eval()
    masks = []
    for batch in torch.as_tensor(features).split(max(1, MAX_BATCH_PIXELS // (size[0] * size[1]))):
        logits = upsample(head(copy_batch(batch, device).float()), size)
        # `max` over the last dimension is a fifth faster than `argmax` on a CPU.
        masks.append(logits.max(-1).indices.to(torch.uint8).cpu())
    return torch.cat(masks).numpy()


def predict(head: nn.Module, images: Iterable[ValBatch]) -> Iterator[tuple[ValBatch, np.ndarray]]:
    """Yield batches and their predicted classes `(n, H, W)` uint8."""
    for batch in images:
        yield batch, predict_masks(head, batch.tokens, batch.masks.shape[1:])


def evaluate(
    head: nn.Module,
    images: Iterable[ValBatch],
    classes: int,
    on_batch: Callable[[ValBatch, np.ndarray], None] | None = None,
) -> np.ndarray:
    """Return the confusion matrix of every validation image, `(N, classes, classes)`.

    `on_batch` is called with every batch and its predicted classes `(n, H, W)`.
    """
    matrices = []
    for batch, predicted in predict(head, images):
        matrices.append(confusion(batch.masks, predicted, classes))
        if on_batch is not None:
            on_batch(batch, predicted)
    return np.concatenate(matrices)


class Validation:
    """Evaluates a head after every epoch of `train_head`; `matrices` `(N, classes, classes)` are of the last one."""

    matrices: np.ndarray

    def __init__(self, head: nn.Module, images: Iterable[ValBatch], classes: int, live: LiveHead | None = None):
        self.head = head
        self.images = images
        self.classes = classes
        self.live = live

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        """Return the epoch's row with `miou` and, by class, `iou`, both in percent."""
        self.matrices = evaluate(self.head, self.images, self.classes, self.live.add_masks if self.live else None)
        result = iou(self.matrices.sum(0))
        row = {**row, "miou": result.mean, "iou": result.per_class}
        if self.live:
            self.live.end_epoch(row)
        return row
