"""Batches of consecutive items that belong together."""

from collections.abc import Callable, Iterable, Iterator
from itertools import groupby, islice
from typing import TypeVar

Item = TypeVar("Item")
Key = TypeVar("Key")


def batch_by_key(
    items: Iterable[Item], key: Callable[[Item], Key], batch_size: Callable[[Key], int]
) -> Iterator[list[Item]]:
    """Yield batches of consecutive items with equal `key`, in order, at most `batch_size(key)` long.

    Lazy: takes items from the iterable as they are needed.
    """
    for group_key, group in groupby(items, key):
        while batch := list(islice(group, batch_size(group_key))):
            yield batch
