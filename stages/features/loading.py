"""Overlap what a batch goes through: loading in worker processes, the model, the copy to the CPU."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor

Batch: TypeAlias = tuple[list[int], Tensor]  # row indices and their inputs, such as pixels


@dataclass(frozen=True)
class _StartedCopy:
    """A copy to the CPU, complete once `copied` is; None on the CPU, where it is complete at once."""

    values: Tensor
    copied: torch.cuda.Event | None

    def wait(self) -> Tensor:
        if self.copied is not None:
            self.copied.synchronize()
        return self.values


def _start_copy(values: Tensor) -> _StartedCopy:
    if values.device.type == "cpu":
        return _StartedCopy(values, None)
    copy = values.to("cpu", non_blocking=True)  # into page-locked memory
    copied = torch.cuda.Event()
    copied.record()
    return _StartedCopy(copy, copied)


def compute_ahead(batches: Iterable[Batch], forward: Callable[[Tensor], Tensor]) -> Iterator[Batch]:
    """Yield the indices of every batch and `forward(inputs)`, copied to the CPU.

    A GPU computes and copies in the order of the calls, asynchronously: forward 1, copy 1, forward 2, copy 2. The next
    batch is started before this one is waited for, so that the GPU computes it while the CPU stores this one.
    """
    previous: tuple[list[int], _StartedCopy] | None = None
    for indices, inputs in batches:
        current = (indices, _start_copy(forward(inputs)))
        if previous is not None:
            yield previous[0], previous[1].wait()
        previous = current
    if previous is not None:
        yield previous[0], previous[1].wait()
