"""How projection heads are trained: Table 4's two, and the grid of Table 5."""

from typing import Literal, Self

from pydantic import Field, field_validator, model_validator

from stages.params.section import Count, Name, Rate, Section, Weight

TABLE4 = {"provided", "scratch", "finetuned"}  # the names of its rows


class TrainingParams(Section):
    """One training. `lr` falls linearly to 0, a step a batch; the last partial batch of an epoch is dropped."""

    lr: Rate
    weight_decay: Weight
    temperature: Rate
    epochs: Count
    batch_size: Count


class GridRow(TrainingParams):
    """One row of the grid, complete in itself. `init` says where the projections start."""

    init: Literal["scratch", "provided"]


class Retrieval(TrainingParams):
    """The retrieval task. Its own recipe is Table 4's training from scratch, `finetune` the other's."""

    views: Count
    finetune: TrainingParams
    grid: dict[Name, GridRow] = Field(min_length=1)

    @field_validator("grid")
    @classmethod
    def _names_of_its_own(cls, grid: dict[str, GridRow]) -> dict[str, GridRow]:
        taken = sorted(set(grid) & TABLE4)
        if taken:
            raise ValueError(f"'{taken[0]}' is a row of Table 4; give the grid's row another name")
        return grid

    @model_validator(mode="after")
    def _views_are_used(self) -> Self:
        longest = max(one.epochs for one in (self, self.finetune, *self.grid.values()))
        if self.views > longest:
            raise ValueError(f"views = {self.views}: must be at most the longest epochs, {longest}")
        return self

    @property
    def recipe(self) -> TrainingParams:
        """Table 4's training from scratch."""
        return TrainingParams(**{key: getattr(self, key) for key in TrainingParams.model_fields})
