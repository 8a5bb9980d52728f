"""Neighbors that are alike, as batches."""

from collections.abc import Callable, Iterable, Iterator
from itertools import groupby, islice
from typing import TypeVar

Item = TypeVar("Item")
Key = TypeVar("Key")


def batch_by_key(items: Iterable[Item], key: Callable[[Item], Key], most: Callable[[Key], int]) -> Iterator[list[Item]]:
    """Runs of neighbors with one `key`, in their order, at most `most(key)` long. Takes items as it needs them."""
    for shared, run in groupby(items, key):
        while batch := list(islice(run, most(shared))):
            yield batch
