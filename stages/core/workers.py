"""Data loaders whose worker processes pass tensors through shared memory."""

import multiprocessing
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset

from stages.core.stage import InputError

SEMAPHORES = 8  # per process at most, of the queues and events of a loader


def build_loader(dataset: Dataset, workers: int, **options: Any) -> DataLoader:
    """Return a loader with `workers` processes and the `options` of `DataLoader`; pins memory for a GPU.

    Raises `InputError` if the processes could not share memory.
    """
    if workers:
        check_shared_memory(workers)
    return DataLoader(dataset, num_workers=workers, pin_memory=torch.cuda.is_available(), **options)


def check_shared_memory(workers: int) -> None:
    """Raise `InputError` if the semaphores of a loader cannot be created.

    A loader that fails to create them leaves a traceback behind (its `__del__` needs attributes that it has not set
    yet), so they are tried first. Tensors that do not fit are reported by `stages.core.stage`.
    """
    try:
        semaphores = [multiprocessing.Lock() for _ in range(SEMAPHORES * (workers + 1))]
    except OSError as error:
        reason = error.strerror or "not available"
        raise InputError(
            f"compute.workers = {workers}: worker processes need shared memory (/dev/shm): {reason}; enlarge it "
            "(`docker run --shm-size 1g`) or set compute.workers to 0"
        ) from error
    del semaphores
