"""What all jobs of BLIP's image tower share."""

from collections.abc import Iterable
from dataclasses import dataclass

from torch import nn

from stages.features.extraction import ShardJob
from stages.image_text.pixels import split_batches
from stages.image_text.towers import Towers


@dataclass
class TowersJob(ShardJob):
    """A job whose inputs are views of one size, for the image tower of `towers`."""

    towers: Towers

    @property
    def model(self) -> nn.Module:
        return self.towers.model

    def prepare(self) -> None:
        self.towers.prepare()

    def split_batches(self, rows: range) -> Iterable[list[int]]:
        return split_batches(rows)
