"""Extraction: a job computes the missing shards of a table, in this process or in many.

The unit of work is a shard. Its batches are always the same, whichever process computes it, so its bytes are, too.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset
from tqdm import tqdm

from stages.core.workers import build_loader
from stages.features.loading import Batch, compute_ahead
from stages.features.shard_store import ShardStore
from stages.features.shards import Shard, Shards
from stages.features.tokens import FeatureMetadata, ViewFeatures, open_feature_writer
from stages.params.compute import Compute


class ShardJob(ABC):
    """How the rows of a table are computed. Picklable, as it travels to the processes that compute it."""

    @property
    @abstractmethod
    def model(self) -> nn.Module:
        """The model that computes; `prepare` brings it to this process's device."""

    @abstractmethod
    def prepare(self) -> None:
        """Prepare the model for this process: device, compilation."""

    @property
    @abstractmethod
    def dataset(self) -> Dataset:
        """Element `index` is `(index, input of row index)`."""

    @abstractmethod
    def split_batches(self, rows: range) -> Iterable[list[int]]:
        """Divide the rows of a shard into batches of consecutive rows."""

    @abstractmethod
    def write(self, path: Path, batches: Iterable[Batch]) -> None:
        """Compute the batches of one shard and write it to `path`."""


class TokenJob(ShardJob):
    """A job whose rows are views of images, in a token table."""

    metadata: FeatureMetadata

    @abstractmethod
    def forward(self, inputs: Tensor) -> Tensor:
        """Return float16 tokens `(B, rows, columns, dim)` of a batch of inputs, on the model's device."""

    @abstractmethod
    def view_features(self, index: int, tokens: Tensor) -> ViewFeatures:
        """Return row `index` with its tokens `(rows, columns, dim)`."""

    @torch.inference_mode()
    def write(self, path: Path, batches: Iterable[Batch]) -> None:
        with open_feature_writer(path, self.metadata) as writer:
            for indices, batch_tokens in compute_ahead(batches, self.forward):
                for index, tokens in zip(indices, batch_tokens, strict=True):
                    writer.add(self.view_features(index, tokens))


def compute_shards(
    job: ShardJob, shards: Sequence[Shard], store: ShardStore, workers: int, progress: Callable[[int], object]
) -> Iterator[Shard]:
    """Compute and store every shard; yield it when it is stored. `progress` gets the number of rows of each batch.

    A few batches are in memory at a time. Call `job.prepare` first.
    """
    batches_by_shard = [list(job.split_batches(shard.rows)) for shard in shards]
    all_batches = [batch for batches in batches_by_shard for batch in batches]
    # One loader for all shards, so that its workers load the next shard while this one is written.
    loader = iter(build_loader(job.dataset, workers, batch_sampler=all_batches))
    for shard, batches in zip(shards, batches_by_shard, strict=True):
        with store.write_shard(shard.name) as path:
            job.write(path, _next_batches(loader, len(batches), progress))
        yield shard


def _next_batches(
    loader: Iterator[tuple[Tensor, Tensor]], count: int, progress: Callable[[int], object]
) -> Iterator[Batch]:
    for indices, inputs in islice(loader, count):
        yield indices.tolist(), inputs
        progress(len(indices))


def extract_here(job: ShardJob, shards: Shards, missing: list[Shard], compute: Compute, bar: tqdm) -> None:
    """Compute the missing shards in this process."""
    job.prepare()
    for _ in compute_shards(job, missing, shards.store, compute.workers, bar.update):
        pass


def extract_with_ray(job: ShardJob, shards: Shards, missing: list[Shard], compute: Compute, bar: tqdm) -> None:
    """Compute the missing shards on a Ray cluster. Raises `InputError` if Ray is not installed."""
    from stages.features.ray_engine import extract  # an extra requirement, with an import of seconds

    extract(job, shards, missing, compute, bar)


ENGINES = {"local": extract_here, "ray": extract_with_ray}  # by `compute.engine`


def extract_shards(job: ShardJob, shards: Shards, compute: Compute, name: str, unit: str = "view") -> list[Path]:
    """Compute the missing shards and return all of them, in order, on this machine.

    A progress bar named `name` counts rows, called `unit`. Raises `InputError` for input that cannot be read.
    """
    missing = shards.missing()
    finished = len(shards.keys) - sum(len(shard.rows) for shard in missing)
    with tqdm(total=len(shards.keys), initial=finished, desc=name, unit=unit, mininterval=1) as bar:
        if missing:
            ENGINES[compute.engine](job, shards, missing, compute, bar)
    return shards.collect()
