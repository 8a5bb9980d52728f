"""Overlap what a batch goes through: loading in worker processes, the model, the copy to the CPU."""

from collections.abc import Callable, Iterable, Iterator
from typing import TypeAlias

from torch import Tensor

Batch: TypeAlias = tuple[list[int], Tensor]  # row indices and their inputs, such as pixels


def compute_ahead(batches: Iterable[Batch], forward: Callable[[Tensor], Tensor]) -> Iterator[Batch]:
    """Yield the indices of every batch and `forward(inputs)`, copied to the CPU.

    The next batch is started before this one is copied: a GPU, which computes asynchronously, is never idle while the
    CPU stores a result.
    """
    previous: Batch | None = None
    for indices, inputs in batches:
        current = (indices, forward(inputs))
        if previous is not None:
            yield previous[0], previous[1].cpu()
        previous = current
    if previous is not None:
        yield previous[0], previous[1].cpu()
