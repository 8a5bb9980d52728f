"""Images cut into views by processes of their own, while the model is at the batch before."""

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from stages.features.shards import Shards

Batch = tuple[list[int], Tensor]  # which views, and their pixels


def iterate_shards(
    shards: Shards, views: Dataset, batches_of: Callable[[range], Iterable[list[int]]], workers: int, name: str
) -> Iterator[tuple[Path, Iterator[Batch]]]:
    """The file of every shard that is missing, with the batches that belong in it; a progress bar counts views.

    `views` gives `(index, pixels)`; `batches_of` divides a shard's views. One loader serves all shards, so that
    cutting views goes on while one is written. Every shard's batches are to be used up before the next shard.
    """
    missing = shards.missing()
    divided = [list(batches_of(span)) for _, span in missing]
    asked, pinned = [batch for batches in divided for batch in batches], torch.cuda.is_available()
    loader = iter(DataLoader(views, batch_sampler=asked, num_workers=workers, pin_memory=pinned))
    there = shards.count - sum(len(batch) for batch in asked)
    with tqdm(total=shards.count, initial=there, desc=name, unit="view", mininterval=1) as bar:
        for (path, _), batches in zip(missing, divided, strict=True):
            yield path, _arriving(loader, len(batches), bar)


def _arriving(loader: Iterator, count: int, bar: tqdm) -> Iterator[Batch]:
    for _ in range(count):
        indices, pixels = next(loader)
        yield indices.tolist(), pixels
        bar.update(len(indices))


def chunked(span: range, size: int) -> Iterator[list[int]]:
    """A shard's views, `size` at a time."""
    for start in range(span.start, span.stop, size):
        yield list(range(start, min(start + size, span.stop)))
