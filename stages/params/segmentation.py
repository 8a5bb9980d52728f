"""Params of segmentation: the views to extract, the heads, and how every head trains."""

from typing import Annotated, Self

from pydantic import AfterValidator, ConfigDict, Field, model_validator

from stages.core.messages import join_names, quote_value
from stages.params.section import BatchSize, Count, Epochs, Name, Rate, Section, Seeds, Weight

LARGEST = 1_000_000  # a larger number, infinity or NaN can only be a mistake


def _check_size(option: int | float | bool | str) -> int | float | bool | str:
    if not isinstance(option, str) and not abs(option) <= LARGEST:
        raise ValueError(f"must be from -{LARGEST} to {LARGEST}")
    return option


Option = Annotated[int | float | bool | str, AfterValidator(_check_size)]


class Head(Section):
    """One segmentation head: its kind and the options of that kind.

    Kinds and options are not checked here but by `stages/segmentation/heads`, which knows them: a new kind of head
    needs no change to the params.
    """

    model_config = ConfigDict(extra="allow")
    __pydantic_extra__: dict[str, Option] = Field(init=False)

    kind: Name

    @property
    def options(self) -> dict[str, Option]:
        """The options besides `kind`, in the order of the params file."""
        return dict(self.__pydantic_extra__)


class Segmentation(Section):
    """The segmentation task. Epoch `e` trains on view `e mod views` of each image.

    The heads that `compare` names are also trained on every one of the `backbones`.
    """

    views: Count
    epochs: Epochs
    batch_size: BatchSize
    lr: Rate
    weight_decay: Weight
    seeds: Seeds
    heads: dict[Name, Head] = Field(min_length=1)
    compare: list[Name]

    @model_validator(mode="after")
    def _every_view_is_used(self) -> Self:
        if self.views > self.epochs:
            limit = f"at most epochs, {self.epochs} (epoch e sees view e mod views)"
            raise ValueError(f"views = {self.views}: must be {limit}")
        return self

    @model_validator(mode="after")
    def _compared_heads_exist(self) -> Self:
        for name in self.compare:
            if name not in self.heads or self.compare.count(name) > 1:
                allowed = f"a list of different heads: {join_names(list(self.heads))}"
                raise ValueError(f"compare = {quote_value(self.compare)}: must be {allowed}")
        return self
