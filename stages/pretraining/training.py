"""What every training of a whole model shares: its optimizers, its learning rate, and going on where it was cut off."""

import hashlib
import inspect
import itertools
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from stages.core.atomic import replacing
from stages.params.pretrain import Pretrain
from stages.params.section import Section

EVALUATE_EVERY = 250  # batches; a killed run goes on from the last evaluation


def optimizers(model: nn.Module, blocks: Iterable[Tensor], recipe: Pretrain) -> tuple[Optimizer, Optimizer]:
    """Muon (K. Jordan et al., 2024) for the matrices among `blocks`, AdamW for all else in `model`."""
    matrices = [weight for weight in blocks if weight.ndim == 2]
    chosen = {id(weight) for weight in matrices}
    others = [weight for weight in model.parameters() if id(weight) not in chosen]
    return (
        torch.optim.Muon(matrices, lr=recipe.muon_lr, weight_decay=recipe.weight_decay),
        torch.optim.AdamW(others, lr=recipe.lr, weight_decay=recipe.weight_decay),
    )


def set_rate(optimizers: Iterable[Optimizer], step: int, steps: int, warmup: int) -> None:
    """Linear warm-up, then a cosine to 0."""
    share = min(1.0, (step + 1) / warmup) * 0.5 * (1 + np.cos(np.pi * step / steps))
    for group in itertools.chain.from_iterable(optimizer.param_groups for optimizer in optimizers):
        group.setdefault("initial_lr", group["lr"])
        group["lr"] = group["initial_lr"] * float(share)


@dataclass
class Progress:
    """How far a pretraining has come, in how many seconds, and what every evaluation found."""

    step: int = 0
    seconds: float = 0.0
    curve: list[dict] = field(default_factory=list)


def asked_for(recipe: Section, *modules: ModuleType) -> dict:
    """The recipe and a hash of the code that follows it: what a resumed run must share with the one cut off."""
    code = "".join(inspect.getsource(module) for module in (sys.modules[__name__], *modules))
    return {**recipe.model_dump(), "code": hashlib.sha256(code.encode()).hexdigest()}


def keep(path: Path, asked: dict, model: nn.Module, optimizers: Iterable[Optimizer], progress: Progress) -> None:
    """Keep all that `resume` needs."""
    state = {"asked": asked, "model": model.state_dict(), "progress": vars(progress)}
    with replacing(path) as beside:
        torch.save({**state, "optimizers": [optimizer.state_dict() for optimizer in optimizers]}, beside)


def resume(path: Path, asked: dict, model: nn.Module, optimizers: Iterable[Optimizer]) -> Progress:
    """Put model and optimizers where `keep` left them, if that run was asked the same; else start from nothing."""
    if not path.is_file():
        return Progress()
    kept = torch.load(path, weights_only=True, map_location="cpu")
    if kept["asked"] != asked:
        return Progress()
    model.load_state_dict(kept["model"])
    for optimizer, state in zip(optimizers, kept["optimizers"], strict=True):
        optimizer.load_state_dict(state)
    return Progress(**kept["progress"])


def follow(
    recipe: Pretrain,
    name: str,
    model: nn.Module,
    both: tuple[Optimizer, Optimizer],
    scenes: Callable[[int, int], Dataset],
    loss_of: Callable[[list[Tensor]], Tensor],
    evaluate: Callable[[], dict[str, float]],
    asked: dict,
    path: Path,
) -> Progress:
    """Train as `recipe` says, from where `path` left off if it holds the same run.

    `scenes(first, count)` are the scenes of the stream to see, each drawn once; `loss_of` takes a batch of them, on
    the model's device; `evaluate` gives what the curve shows beside the loss.
    """
    device = next(model.parameters()).device
    progress, steps = resume(path, asked, model, both), recipe.images // recipe.batch
    remaining = scenes(progress.step * recipe.batch, (steps - progress.step) * recipe.batch)
    batches = DataLoader(remaining, recipe.batch, num_workers=1, prefetch_factor=16, pin_memory=device.type == "cuda")
    bar = tqdm(batches, total=steps, initial=progress.step, desc=name, unit="batch", mininterval=2)
    start, losses = time.perf_counter() - progress.seconds, []
    for step, batch in enumerate(bar, progress.step):
        set_rate(both, step, steps, recipe.warmup)
        model.train()
        loss = loss_of([part.to(device, non_blocking=True) for part in batch])
        loss.backward()
        for optimizer in both:
            optimizer.step()
            optimizer.zero_grad()
        losses.append(loss.detach())
        if (step + 1) % EVALUATE_EVERY == 0 or step + 1 == steps:
            model.eval()
            seen = {"images": (step + 1) * recipe.batch, "loss": torch.stack(losses).mean().item()}
            progress = Progress(step + 1, time.perf_counter() - start, [*progress.curve, seen | evaluate()])
            losses = []
            bar.write("  ".join(f"{key} {value:.4g}" for key, value in progress.curve[-1].items()))
            keep(path, asked, model, both, progress)
    return progress
