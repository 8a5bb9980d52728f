"""Load image views in worker processes while the model computes the previous batch."""

from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from pathlib import Path

from torch import Tensor
from torch.utils.data import Dataset
from tqdm import tqdm

from stages.core.workers import build_loader
from stages.features.shards import Shards

Batch = tuple[list[int], Tensor]  # dataset indices and their pixels


def iterate_shards(
    shards: Shards, dataset: Dataset, split_batches: Callable[[range], Iterable[list[int]]], workers: int, name: str
) -> Iterator[tuple[Path, Iterator[Batch]]]:
    """Yield the path and the batches of every missing shard; a progress bar named `name` counts views.

    `dataset[index]` is `(index, pixels)`. `split_batches` divides the index range of a shard into batches. Consume
    all batches of a shard and write it before you ask for the next shard: its checksum is then recorded.
    """
    missing = shards.missing()
    batches_by_shard = [list(split_batches(span)) for _, span in missing]
    all_batches = [batch for batches in batches_by_shard for batch in batches]
    # One loader for all shards, so that its workers load the next shard while this one is written.
    loader = iter(build_loader(dataset, workers, batch_sampler=all_batches))
    finished = shards.count - sum(len(batch) for batch in all_batches)
    with tqdm(total=shards.count, initial=finished, desc=name, unit="view", mininterval=1) as progress:
        for (path, _), batches in zip(missing, batches_by_shard, strict=True):
            yield path, _next_batches(loader, len(batches), progress)
            shards.finish(path)


def _next_batches(loader: Iterator[tuple[Tensor, Tensor]], count: int, progress: tqdm) -> Iterator[Batch]:
    for indices, pixels in islice(loader, count):
        yield indices.tolist(), pixels
        progress.update(len(indices))
