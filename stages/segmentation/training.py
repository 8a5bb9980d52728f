"""Training and judging a head: loss, epochs, predictions at the masks' size."""

import math
from collections.abc import Iterator
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F
from tqdm import tqdm

from stages.core.stage import InputError
from stages.data.voc import VOID
from stages.params.segmentation import Segmentation
from stages.segmentation.dataset import MAX_BATCH_PIXELS, TrainViews, ValBatch, ValImages
from stages.segmentation.iou import confusion, iou


def upsample(logits: Tensor, size: tuple[int, int]) -> Tensor:
    """Logits `(B, rows, columns, classes)` stretched bilinearly to `(B, *size, classes)`, as `F.interpolate` does.

    Two small matrix products, a side each: on a CPU faster than `F.interpolate`, and classes stay last.
    """
    return _along_sides(logits, *_weights(logits, size))


def _weights(logits: Tensor, size: tuple[int, int]) -> list[Tensor]:
    return [_bilinear(*sides).to(logits) for sides in zip(logits.shape[1:3], size, strict=True)]


@lru_cache(maxsize=256)
def _bilinear(cells: int, length: int) -> Tensor:
    """Weights `(length, cells)` of every cell at every pixel along one side, pixel centers at halves."""
    with torch.inference_mode(False):  # made while predicting, they must serve training too
        return F.interpolate(torch.eye(cells)[None], size=length, mode="linear", align_corners=False)[0].T.contiguous()


def _along_sides(maps: Tensor, down: Tensor, across: Tensor) -> Tensor:
    """`down` `(H, rows)` and `across` `(W, columns)` on `maps` `(B, rows, columns, classes)`: `(B, H, W, classes)`."""
    wide = across @ maps  # (B, rows, W, classes)
    return (down @ wide.flatten(2)).unflatten(2, wide.shape[2:])  # (B, H, W * classes), taken apart again


class PixelCrossEntropy(torch.autograd.Function):
    """Mean cross entropy of stretched logits over the pixels that are not void; 0 where all are.

    The value and the gradient of `upsample`, then `F.cross_entropy(..., ignore_index=255)`. Full-size logits live for
    a few images at a time: their gradient, softmax minus one-hot, is taken in their own memory and brought back to the
    grid at once. Most of a head's step on a CPU went into those passes over memory.
    """

    @staticmethod
    def forward(ctx, logits: Tensor, masks: Tensor) -> Tensor:
        kept = masks != VOID
        count = kept.sum().clamp(min=1)
        down, across = _weights(logits, masks.shape[1:])
        at_once = max(1, MAX_BATCH_PIXELS // masks[0].numel())
        loss, gradients = logits.new_zeros(()), []
        for part, labels, counted in zip(*(whole.split(at_once) for whole in (logits, masks, kept)), strict=True):
            index = labels.long().masked_fill(~counted, 0).unsqueeze(3)  # (b, H, W, 1)
            shares = _along_sides(part, down, across).log_softmax(3)  # (b, H, W, classes)
            loss -= (shares.gather(3, index).squeeze(3) * counted).sum()
            shares.exp_().scatter_add_(3, index, shares.new_full((), -1.0).expand_as(index))
            gradients.append(_along_sides(shares.mul_(counted.unsqueeze(3)), down.T, across.T))
        ctx.save_for_backward(torch.cat(gradients) / count)
        return loss / count

    @staticmethod
    @once_differentiable
    def backward(ctx, slope: Tensor) -> tuple[Tensor, None]:
        return ctx.saved_tensors[0] * slope, None


def pixel_loss(logits: Tensor, masks: Tensor) -> Tensor:
    """Mean cross entropy of logits `(B, rows, columns, classes)`, stretched to `masks` `(B, H, W)`; void left out."""
    return PixelCrossEntropy.apply(logits, masks)


def train_epoch(
    head: nn.Module, optimizer, tokens: Tensor, masks: Tensor, batch: int, shuffle: torch.Generator
) -> float:
    """One pass over the views in random order, the last partial batch dropped; returns the mean loss of its steps."""
    device = next(head.parameters()).device
    head.train()
    losses = []
    order = torch.randperm(len(tokens), generator=shuffle)
    for chosen in order[: len(order) - len(order) % batch].split(batch):
        loss = pixel_loss(head(tokens[chosen].to(device).float()), masks[chosen].to(device))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.detach())
    return torch.stack(losses).mean().item()


@torch.inference_mode()
def predict(head: nn.Module, images: ValImages) -> Iterator[tuple[ValBatch, Tensor]]:
    """Predicted classes `(n, H, W)` uint8 at full size, batch by batch: logits are stretched first, then argmax."""
    device = next(head.parameters()).device
    head.eval()
    for alike in images:
        logits = upsample(head(alike.tokens.to(device).float()), alike.masks.shape[1:])
        yield alike, logits.max(-1).indices.to(torch.uint8).cpu()  # twice as fast as argmax on a CPU


def evaluate(head: nn.Module, images: ValImages, classes: int) -> np.ndarray:
    """Confusion matrices of all validation images, `(N, classes, classes)`."""
    pairs = ((alike.masks, predicted.numpy()) for alike, predicted in predict(head, images))
    return np.concatenate([confusion(masks, predicted, classes) for masks, predicted in pairs])


def train(
    head: nn.Module, views: TrainViews, val: ValImages, classes: int, task: Segmentation, seed: int, name: str
) -> tuple[list[dict], np.ndarray]:
    """Train for `task.epochs`; returns the history, an epoch a dict, and the last epoch's confusion matrices.

    AdamW; the learning rate falls linearly to 0, a step an epoch.
    """
    optimizer = torch.optim.AdamW(head.parameters(), lr=task.lr, weight_decay=task.weight_decay, fused=True)
    falling = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda epoch: 1 - epoch / task.epochs)
    shuffle = torch.Generator().manual_seed(seed)
    history = []
    with tqdm(range(task.epochs), desc=name, unit="epoch") as bar:
        for epoch in bar:
            tokens, masks = views.epoch(epoch)
            loss = train_epoch(head, optimizer, tokens, masks, task.batch_size, shuffle)
            if not math.isfinite(loss):
                raise InputError(
                    f"{name}: training diverged in epoch {epoch + 1} (loss {loss}); try a lower segmentation.lr"
                )
            falling.step()
            matrices = evaluate(head, val, classes)
            measured = iou(matrices.sum(0))
            history.append({"epoch": epoch + 1, "train_loss": loss, "miou": measured.mean, "iou": measured.per_class})
            bar.set_postfix(loss=f"{loss:.3f}", mIoU=f"{measured.mean:.2f}")
    return history, matrices
