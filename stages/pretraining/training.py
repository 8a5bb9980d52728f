"""The training loop of all pretrainings: optimizers, learning rate schedule, evaluation, save and resume."""

import time
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.data import DataLoader
from tqdm import tqdm

from stages.core import processes, train_state
from stages.core.stage import InputError
from stages.core.train_state import TrainState
from stages.data.dataset import MappedDataset
from stages.params.recipe import Recipe
from stages.pretraining.muon import Muon

EVALUATE_EVERY = 250  # batches; an interrupted run resumes from its last evaluation


def build_optimizers(model: nn.Module, block_weights: Iterable[Tensor], recipe: Recipe) -> tuple[Optimizer, Optimizer]:
    """Muon for the matrices among `block_weights`, AdamW for all other weights of `model`."""
    matrices = [weight for weight in block_weights if weight.ndim == 2]
    matrix_ids = {id(weight) for weight in matrices}
    rest = [weight for weight in model.parameters() if id(weight) not in matrix_ids]
    muon = Muon(matrices, recipe.muon_lr, recipe.weight_decay)
    adamw = torch.optim.AdamW(rest, lr=recipe.lr, weight_decay=recipe.weight_decay)
    return muon, adamw


def set_learning_rate(optimizers: Iterable[Optimizer], step: int, steps: int, warmup: int) -> None:
    """Scale every learning rate by a linear warm-up times a cosine decay to 0."""
    scale = min(1.0, (step + 1) / warmup) * 0.5 * (1 + np.cos(np.pi * step / steps))
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group.setdefault("initial_lr", group["lr"])
            group["lr"] = group["initial_lr"] * float(scale)


def fit(
    recipe: Recipe,
    name: str,
    model: nn.Module,
    optimizers: tuple[Optimizer, Optimizer],
    load_example: Callable[[int], tuple[Tensor, ...]],
    compute_loss: Callable[[list[Tensor]], Tensor],
    evaluate: Callable[[], dict[str, float]],
    resume_key: dict,
    path: Path,
) -> TrainState:
    """Train `model` in place, resuming from `path` if it holds a run with the same `resume_key`.

    `load_example(index)` gives one example of an endless stream, each used once; it must be picklable. `compute_loss`
    takes a batch on the model's device. `evaluate` returns metrics, which the curve shows next to the loss.

    Of several processes, each loads its share of every batch, and `compute_loss` returns its part of the loss: the
    parts add up to the loss of the whole batch. Raises `InputError` for more processes than images in a batch.
    """
    if recipe.batch_size < processes.count():
        raise InputError(
            f"{name}.batch_size = {recipe.batch_size}: smaller than {processes.count()}, the number of processes"
        )
    device = next(model.parameters()).device
    state = train_state.load_state(path, resume_key, model, optimizers)
    steps = recipe.images // recipe.batch_size
    shares = [share_of_batch(step, recipe.batch_size) for step in range(state.step, steps)]
    remaining = MappedDataset([index for share in shares for index in share], load_example)
    batches = DataLoader(
        remaining,
        len(share_of_batch(0, recipe.batch_size)),  # of every batch: all batches have the same size
        num_workers=1,
        prefetch_factor=16,
        pin_memory=device.type == "cuda",
    )
    progress = tqdm(
        batches,
        total=steps,
        initial=state.step,
        desc=name,
        unit="batch",
        mininterval=2,
        disable=not processes.is_main(),
    )
    start = time.perf_counter() - state.seconds
    losses = []
    for step, (_, batch) in enumerate(progress, state.step):
        set_learning_rate(optimizers, step, steps, recipe.warmup)
        model.train()
        loss = compute_loss([tensor.to(device, non_blocking=True) for tensor in batch])
        loss.backward()
        processes.all_reduce_gradients(model.parameters())
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        losses.append(loss.detach())
        if (step + 1) % EVALUATE_EVERY == 0 or step + 1 == steps:
            model.eval()
            mean_loss = processes.all_reduce(torch.stack(losses).mean()).item()
            point = {"images": (step + 1) * recipe.batch_size, "loss": mean_loss}
            point |= evaluate()
            losses = []
            state = TrainState(step + 1, time.perf_counter() - start, [*state.curve, point])
            if processes.is_main():
                progress.write("  ".join(f"{key} {value:.4g}" for key, value in point.items()))
            train_state.save_state(path, resume_key, model, optimizers, state)
    return state


def share_of_batch(step: int, batch_size: int) -> range:
    """The indices of this process's examples in batch `step` of the stream."""
    return processes.share(range(step * batch_size, (step + 1) * batch_size))
