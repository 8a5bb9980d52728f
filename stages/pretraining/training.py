"""What every training of a whole model shares: its optimizers, its learning rate, and going on where it was cut off."""

import itertools
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from stages.core import train_state
from stages.core.train_state import TrainState
from stages.params.pretrain import Pretrain

EVALUATE_EVERY = 250  # batches; a killed run goes on from the last evaluation


def build_optimizers(model: nn.Module, blocks: Iterable[Tensor], recipe: Pretrain) -> tuple[Optimizer, Optimizer]:
    """Muon (K. Jordan et al., 2024) for the matrices among `blocks`, AdamW for all else in `model`."""
    matrices = [weight for weight in blocks if weight.ndim == 2]
    chosen = {id(weight) for weight in matrices}
    others = [weight for weight in model.parameters() if id(weight) not in chosen]
    return (
        torch.optim.Muon(matrices, lr=recipe.muon_lr, weight_decay=recipe.weight_decay),
        torch.optim.AdamW(others, lr=recipe.lr, weight_decay=recipe.weight_decay),
    )


def set_learning_rate(optimizers: Iterable[Optimizer], step: int, steps: int, warmup: int) -> None:
    """Linear warm-up, then a cosine to 0."""
    share = min(1.0, (step + 1) / warmup) * 0.5 * (1 + np.cos(np.pi * step / steps))
    for group in itertools.chain.from_iterable(optimizer.param_groups for optimizer in optimizers):
        group.setdefault("initial_lr", group["lr"])
        group["lr"] = group["initial_lr"] * float(share)


def fit(
    recipe: Pretrain,
    name: str,
    model: nn.Module,
    both: tuple[Optimizer, Optimizer],
    scenes: Callable[[int, int], Dataset],
    loss_of: Callable[[list[Tensor]], Tensor],
    evaluate: Callable[[], dict[str, float]],
    asked: dict,
    path: Path,
) -> TrainState:
    """Train as `recipe` says, from where `path` left off if it holds the same run.

    `scenes(first, count)` are the scenes of the stream to see, each drawn once; `loss_of` takes a batch of them, on
    the model's device; `evaluate` gives what the curve shows beside the loss.
    """
    device = next(model.parameters()).device
    progress, steps = train_state.load_state(path, asked, model, both), recipe.images // recipe.batch_size
    remaining = scenes(progress.step * recipe.batch_size, (steps - progress.step) * recipe.batch_size)
    batches = DataLoader(
        remaining, recipe.batch_size, num_workers=1, prefetch_factor=16, pin_memory=device.type == "cuda"
    )
    bar = tqdm(batches, total=steps, initial=progress.step, desc=name, unit="batch", mininterval=2)
    start, losses = time.perf_counter() - progress.seconds, []
    for step, batch in enumerate(bar, progress.step):
        set_learning_rate(both, step, steps, recipe.warmup)
        model.train()
        loss = loss_of([part.to(device, non_blocking=True) for part in batch])
        loss.backward()
        for optimizer in both:
            optimizer.step()
            optimizer.zero_grad()
        losses.append(loss.detach())
        if (step + 1) % EVALUATE_EVERY == 0 or step + 1 == steps:
            model.eval()
            seen = {"images": (step + 1) * recipe.batch_size, "loss": torch.stack(losses).mean().item()}
            progress = TrainState(step + 1, time.perf_counter() - start, [*progress.curve, seen | evaluate()])
            losses = []
            bar.write("  ".join(f"{key} {value:.4g}" for key, value in progress.curve[-1].items()))
            train_state.save_state(path, asked, model, both, progress)
    return progress
