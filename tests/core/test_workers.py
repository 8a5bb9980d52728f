"""Worker processes need shared memory; without it, one line says so."""

import errno
import multiprocessing
import os

import pytest
import torch

from stages.core.stage import InputError
from stages.core.workers import build_loader
from stages.data.dataset import MappedDataset

DATASET = MappedDataset(range(4), lambda number: torch.tensor([number]))


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EROFS, errno.ENOSYS])
def test_missing_shared_memory_is_named(code, monkeypatch):
    def fail():
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(multiprocessing, "Lock", fail)
    with pytest.raises(InputError, match=f"compute.workers = 2: .*/dev/shm.*{os.strerror(code)}.*set compute.workers"):
        build_loader(DATASET, 2)
    assert len(list(build_loader(DATASET, 0))) == 4  # without workers, none is needed


def test_loader_returns_batches_of_its_workers():
    indices = [batch.tolist() for batch, _ in build_loader(DATASET, 1, batch_size=3)]
    assert indices == [[0, 1, 2], [3]]
