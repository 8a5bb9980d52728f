"""Training and judging a head: loss, epochs, predictions at the masks' size."""

import math
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm

from stages.params.experiment import Segmentation
from stages.segmentation.cached import Alike, TrainViews, ValImages
from stages.segmentation.iou import confusion, iou
from stages.stage import InputError
from stages.voc import VOID


def upsample(logits: Tensor, size: tuple[int, int]) -> Tensor:
    """Logits `(B, rows, columns, classes)` stretched bilinearly to `(B, *size, classes)`."""
    stretched = F.interpolate(logits.permute(0, 3, 1, 2), size=size, mode="bilinear", align_corners=False)
    return stretched.permute(0, 2, 3, 1)


def pixel_loss(logits: Tensor, masks: Tensor) -> Tensor:
    """Mean cross entropy over the pixels that are not void; 0 where all are. Logits are stretched to the masks.

    Classes come last: `cross_entropy` on `(pixels, classes)` is twice as fast as on `(B, classes, H, W)`.
    """
    stretched = upsample(logits, masks.shape[1:]).flatten(0, 2)
    total = F.cross_entropy(stretched, masks.flatten().long(), ignore_index=VOID, reduction="sum")
    return total / (masks != VOID).sum().clamp(min=1)


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
def predict(head: nn.Module, images: ValImages) -> Iterator[tuple[Alike, Tensor]]:
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
    optimizer = torch.optim.AdamW(head.parameters(), lr=task.lr, weight_decay=task.weight_decay)
    falling = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda epoch: 1 - epoch / task.epochs)
    shuffle = torch.Generator().manual_seed(seed)
    history = []
    with tqdm(range(task.epochs), desc=name, unit="epoch") as bar:
        for epoch in bar:
            tokens, masks = views.epoch(epoch)
            loss = train_epoch(head, optimizer, tokens, masks, task.batch, shuffle)
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
