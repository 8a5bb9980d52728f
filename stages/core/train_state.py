"""Save and resume a training: weights, optimizers, and how far it has come."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeAlias

import torch
from torch import nn
from torch.amp import GradScaler
from torch.optim import Optimizer

from stages.core.atomic import atomic_write

# A `GradScaler`'s scale is part of the state as well.
Optimizers: TypeAlias = Iterable[Optimizer | GradScaler]


@dataclass
class TrainState:
    """`step` counts finished batches or epochs; `curve` has one dict per evaluation."""

    step: int = 0
    seconds: float = 0.0
    curve: list[dict] = field(default_factory=list)


def save_state(path: Path, key: dict, model: nn.Module, optimizers: Optimizers, state: TrainState) -> None:
    """Save what `load_state` needs. `key` holds the params and input hashes that a resumed run must share."""
    content = {
        "key": key,
        "model": model.state_dict(),
        "optimizers": [optimizer.state_dict() for optimizer in optimizers],
        "state": vars(state),
    }
    with atomic_write(path) as temporary:
        torch.save(content, temporary)


def load_state(path: Path, key: dict, model: nn.Module, optimizers: Optimizers) -> TrainState:
    """Restore model and optimizers in place if `path` holds a run with the same `key`; else return a fresh state."""
    if not path.is_file():
        return TrainState()
    content = torch.load(path, weights_only=True, map_location="cpu")
    if content["key"] != key:
        return TrainState()
    model.load_state_dict(content["model"])
    for optimizer, optimizer_state in zip(optimizers, content["optimizers"], strict=True):
        optimizer.load_state_dict(optimizer_state)
    return TrainState(**content["state"])
