"""Train a head on patch features: arrays in memory, or the views of a feature table."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from tqdm import tqdm

from stages.segmentation.pixel_loss import pixel_loss

Array = np.ndarray | Tensor


class DivergedError(Exception):
    """The loss of a training is not finite."""


def train_epoch(
    head: nn.Module, optimizer: Optimizer, features: Tensor, masks: Tensor, batch_size: int, rng: torch.Generator
) -> float:
    """Train on all images once, in random order without the last partial batch; return the mean loss per step."""
    if len(features) != len(masks):
        raise ValueError(f"features of {len(features)} images, but masks of {len(masks)}")
    if len(features) < batch_size:
        raise ValueError(f"batch_size = {batch_size}: at most {len(features)}, the training images")
    device = next(head.parameters()).device
    head.train()
    losses = []
    order = torch.randperm(len(features), generator=rng)
    full_batches = order[: len(order) - len(order) % batch_size]
    for indices in full_batches.split(batch_size):
        logits = head(copy_batch(features[indices], device).float())
        loss = pixel_loss(logits, copy_batch(masks[indices], device))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.detach())
    return torch.stack(losses).mean().item()


def copy_batch(batch: Tensor, device: torch.device) -> Tensor:
    """Copy a batch to the device; to a GPU from pinned memory, so that the CPU does not wait for it."""
    if device.type == "cuda" and not batch.is_cuda:
        batch = batch.pin_memory()
    return batch.to(device, non_blocking=True)


def train_head(
    head: nn.Module,
    views: Sequence[tuple[Array, Array]],
    *,
    epochs: int,
    batch_size: int = 8,
    lr: float = 1e-3,
    weight_decay: float = 1e-3,
    seed: int = 1,
    name: str = "train",
    validate: Callable[[dict[str, Any]], dict[str, Any]] | None = None,
) -> list[dict[str, Any]]:
    """Train a head, in place; return one row per epoch with its number from 1 and its mean loss.

    `views` are pairs of features `(N, rows, columns, dim)` and masks `(N, H, W)` uint8 of the same images, with `VOID`
    where a pixel has no class. Epoch `e`, from 0, uses view `e mod len(views)`: one pair is enough, and further ones
    are crops of the same images. `seed` determines the order of images, `name` is that of the progress bar.
    `validate` is called with the row of each finished epoch, and returns it with more metrics.

    AdamW; the learning rate falls linearly to 0, one step per epoch. Raises `ValueError` for fewer images than a batch
    has and for features and masks of different numbers of images, and `DivergedError`.
    """
    optimizer = torch.optim.AdamW(head.parameters(), lr=lr, weight_decay=weight_decay, fused=True)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda epoch: 1 - epoch / epochs)
    rng = torch.Generator().manual_seed(seed)
    history = []
    with tqdm(range(epochs), desc=name, unit="epoch") as progress:
        for epoch in progress:
            features, masks = map(torch.as_tensor, views[epoch % len(views)])
            loss = train_epoch(head, optimizer, features, masks, batch_size, rng)
            if not math.isfinite(loss):
                raise DivergedError(
                    f"{name}: training diverged in epoch {epoch + 1} (loss {loss}); choose a smaller learning rate"
                )
            schedule.step()
            row = {"epoch": epoch + 1, "train_loss": loss}
            history.append(validate(row) if validate else row)
            progress.set_postfix(
                {key: f"{value:.3f}" for key, value in history[-1].items() if isinstance(value, float)}
            )
    return history
