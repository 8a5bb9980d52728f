"""Train and evaluate a head on cached tokens."""

import math
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from tqdm import tqdm

from stages.core.stage import InputError
from stages.params.segmentation import Segmentation
from stages.segmentation.dataset import TrainViews, ValBatch, ValImages
from stages.segmentation.iou import confusion, iou
from stages.segmentation.live_head import LiveHead
from stages.segmentation.pixel_loss import pixel_loss
from stages.segmentation.upsampling import upsample


def train_epoch(
    head: nn.Module, optimizer: Optimizer, tokens: Tensor, masks: Tensor, batch_size: int, rng: torch.Generator
) -> float:
    """Train on all views once, in random order without the last partial batch; return the mean loss per step."""
    device = next(head.parameters()).device
    head.train()
    losses = []
    order = torch.randperm(len(tokens), generator=rng)
    full_batches = order[: len(order) - len(order) % batch_size]
    for indices in full_batches.split(batch_size):
        logits = head(copy_batch(tokens[indices], device).float())
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


@torch.inference_mode()
def predict(head: nn.Module, images: ValImages) -> Iterator[tuple[ValBatch, Tensor]]:
    """Yield batches and their predicted classes `(n, H, W)` uint8."""
    head.eval()
    for batch in images:
        yield batch, predict_masks(head, batch.tokens, batch.masks.shape[1:])


def predict_masks(head: nn.Module, tokens: Tensor, size: Sequence[int]) -> Tensor:
    """Predicted classes `(n, *size)` uint8 of tokens `(n, rows, columns, dim)`: the argmax of upsampled logits."""
    device = next(head.parameters()).device
    logits = upsample(head(copy_batch(tokens, device).float()), size)
    # `max` over the last dimension is a fifth faster than `argmax` on a CPU.
    return logits.max(-1).indices.to(torch.uint8).cpu()


def evaluate(
    head: nn.Module,
    images: ValImages,
    classes: int,
    on_batch: Callable[[ValBatch, np.ndarray], None] | None = None,
) -> np.ndarray:
    """Return the confusion matrix of every validation image, `(N, classes, classes)`.

    `on_batch` is called with every batch and its predicted classes `(n, H, W)`.
    """
    matrices = []
    for batch, predicted in predict(head, images):
        matrices.append(confusion(batch.masks, predicted.numpy(), classes))
        if on_batch is not None:
            on_batch(batch, predicted.numpy())
    return np.concatenate(matrices)


def train(
    head: nn.Module,
    views: TrainViews,
    val: ValImages,
    classes: int,
    task: Segmentation,
    seed: int,
    name: str,
    live: LiveHead | None = None,
) -> tuple[list[dict], np.ndarray]:
    """Train for `task.epochs`; return one history row per epoch and the confusion matrices after the last epoch.

    AdamW; the learning rate falls linearly to 0, one step per epoch. Raises `InputError` if the loss diverges.
    """
    optimizer = torch.optim.AdamW(head.parameters(), lr=task.lr, weight_decay=task.weight_decay, fused=True)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda epoch: 1 - epoch / task.epochs)
    rng = torch.Generator().manual_seed(seed)
    history = []
    with tqdm(range(task.epochs), desc=name, unit="epoch") as progress:
        for epoch in progress:
            tokens, masks = views.epoch(epoch)
            loss = train_epoch(head, optimizer, tokens, masks, task.batch_size, rng)
            if not math.isfinite(loss):
                raise InputError(
                    f"segmentation.lr = {task.lr:g}: {name}: training diverged in epoch {epoch + 1} (loss {loss}); "
                    "choose a smaller learning rate"
                )
            schedule.step()
            matrices = evaluate(head, val, classes, live.add_masks if live else None)
            result = iou(matrices.sum(0))
            history.append({"epoch": epoch + 1, "train_loss": loss, "miou": result.mean, "iou": result.per_class})
            if live:
                live.end_epoch(history[-1])
            progress.set_postfix(loss=f"{loss:.3f}", mIoU=f"{result.mean:.2f}")
    return history, matrices
