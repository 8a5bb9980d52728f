"""A map-style dataset from a list of items and a function, for `torch.utils.data.DataLoader`."""

from collections.abc import Callable, Sequence
from typing import Any, Generic, TypeVar

from torch.utils.data import Dataset

Item = TypeVar("Item")


class MappedDataset(Dataset, Generic[Item]):
    """Element `index` is `(index, load(items[index]))`.

    The index travels with the element, since batches may arrive in another order than the items. `load` must be
    picklable (a function of a module, or a `partial` of one): worker processes may be started by `spawn`.
    """

    def __init__(self, items: Sequence[Item], load: Callable[[Item], Any]):
        self.items = items
        self.load = load

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> tuple[int, Any]:
        return index, self.load(self.items[index])
