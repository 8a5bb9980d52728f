"""Save and resume a training: weights, optimizers, and how far it has come."""

from collections.abc import Iterable, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, TypeAlias
from zipfile import ZipFile

import torch
from torch import nn
from torch.amp import GradScaler
from torch.optim import Optimizer

from stages.core import processes
from stages.core.atomic import atomic_write
from stages.core.messages import quote_value
from stages.core.stage import InputError, first_line

# A `GradScaler`'s scale is part of the state as well.
Optimizers: TypeAlias = Iterable[Optimizer | GradScaler]


@dataclass
class TrainState:
    """`step` counts finished batches or epochs; `curve` has one dict per evaluation."""

    step: int = 0
    seconds: float = 0.0
    curve: list[dict] = field(default_factory=list)


def save_state(path: Path, key: dict, model: nn.Module, optimizers: Optimizers, state: TrainState) -> None:
    """Save what `load_state` needs. `key` holds the params and input hashes that a resumed run must share.

    Of several processes, the main one saves. Raises `InputError` if the file cannot be written; the last saved state
    then stays.
    """
    if not processes.is_main():
        return
    content = {
        "key": key,
        "model": model.state_dict(),
        "optimizers": [optimizer.state_dict() for optimizer in optimizers],
        "state": vars(state),
    }
    try:
        # An open file, not its path: torch's own writer hides the system's error behind "unexpected pos 64 vs 0".
        with atomic_write(path) as temporary, temporary.open("wb") as file:
            torch.save(content, file)
    except (OSError, RuntimeError) as error:
        cause = error if isinstance(error, OSError) else error.__context__
        if not isinstance(cause, OSError):
            raise
        raise InputError(
            f"{path}: the training state cannot be saved: {cause.strerror or first_line(cause)}; free space or allow "
            "writing, and run again: the training resumes from the last saved state"
        ) from error


def load_state(path: Path, key: dict, model: nn.Module, optimizers: Optimizers) -> TrainState:
    """Restore model and optimizers in place if `path` holds a run with the same `key`; else return a fresh state.

    A damaged state, or one that does not fit the model, is ignored with a printed line: nobody can repair it, and a
    training from the beginning ends in the same weights. Model and optimizers are then as before. Raises `OSError` if
    the file cannot be opened.

    Of several processes, the main one reads the file, and all others get its weights, optimizers and state.
    """
    optimizers = list(optimizers)
    if processes.count() == 1:
        return _load_file(path, key, model, optimizers)
    state = _load_file(path, key, model, optimizers) if processes.is_main() else TrainState()
    weights, states, fields = processes.broadcast(
        [model.state_dict(), [optimizer.state_dict() for optimizer in optimizers], vars(state)]
    )
    _restore(model, optimizers, weights, states)
    return TrainState(**fields)


def _load_file(path: Path, key: dict, model: nn.Module, optimizers: Sequence[Optimizer | GradScaler]) -> TrainState:
    if not path.is_file():
        return TrainState()
    initial = deepcopy((model.state_dict(), [optimizer.state_dict() for optimizer in optimizers]))
    with path.open("rb") as file:
        try:
            content = _read(file)
            if content["key"] != key:
                return TrainState()
            _restore(model, optimizers, content["model"], content["optimizers"])
            return TrainState(**content["state"])
        except MemoryError:
            raise
        except Exception as error:  # noqa: BLE001  # damaged bytes raise exceptions of many types
            reason = quote_value(first_line(error))
    _restore(model, optimizers, *initial)
    print(f"{path}: damaged, or not of this training ({reason}): training starts from the beginning")
    return TrainState()


def _read(file: BinaryIO) -> dict[str, Any]:
    """The content of a file of `save_state`. Raises exceptions of many types for a damaged file."""
    # `torch.load` does not verify the checksums that `torch.save` writes.
    with ZipFile(file) as archive:
        damaged = archive.testzip()
    if damaged:
        raise ValueError(f"wrong checksum of {damaged}")
    file.seek(0)
    return torch.load(file, weights_only=True, map_location="cpu")


def _restore(model: nn.Module, optimizers: Sequence[Optimizer | GradScaler], weights: dict, states: list[dict]) -> None:
    model.load_state_dict(weights)
    for optimizer, optimizer_state in zip(optimizers, states, strict=True):
        optimizer.load_state_dict(optimizer_state)
