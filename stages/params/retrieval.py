"""Params of retrieval: how the projection heads of Table 4 and of the grid in Table 5 are trained."""

from typing import Literal, Self

from pydantic import Field, field_validator, model_validator

from stages.params.section import BatchSize, Count, Epochs, Name, Probability, Rate, Section, Seeds, Temperature, Weight

TABLE4_ROWS = {"provided", "scratch", "finetuned"}  # their runs' names, which the grid must not reuse


class TrainingParams(Section):
    """One training. `lr` decays linearly to 0, per batch; the last partial batch of an epoch is dropped."""

    lr: Rate
    weight_decay: Weight
    temperature: Temperature
    epochs: Epochs
    batch_size: BatchSize


class GridRow(TrainingParams):
    """One row of the grid. `init`: train the projections from scratch, or from the provided checkpoint's."""

    init: Literal["scratch", "provided"]


class Retrieval(TrainingParams):
    """The retrieval task. Its own training params are for Table 4's training from scratch.

    RandAugment applies each operation that it draws with `augment_probability`.
    """

    views: Count
    augment_probability: Probability
    seeds: Seeds
    finetune: TrainingParams
    grid: dict[Name, GridRow] = Field(min_length=1)

    @field_validator("grid")
    @classmethod
    def _names_are_free(cls, grid: dict[str, GridRow]) -> dict[str, GridRow]:
        for name in grid:
            if name in TABLE4_ROWS:
                raise ValueError(f"{name}: Table 4 has a row of this name; choose another")
        return grid

    @model_validator(mode="after")
    def _every_view_is_used(self) -> Self:
        trainings: list[TrainingParams] = [self, self.finetune, *self.grid.values()]
        longest = max(training.epochs for training in trainings)
        if self.views > longest:
            raise ValueError(f"views = {self.views}: must be at most the longest epochs, {longest}")
        return self

    @property
    def recipe(self) -> TrainingParams:
        """The params of Table 4's training from scratch."""
        return TrainingParams(**{key: getattr(self, key) for key in TrainingParams.model_fields})

    @property
    def table4(self) -> dict[str, GridRow | None]:
        """The runs of Table 4 by name; None stands for the provided projections, which are not trained."""
        return {
            "provided": None,
            "scratch": GridRow(init="scratch", **self.recipe.model_dump()),
            "finetuned": GridRow(init="provided", **self.finetune.model_dump()),
        }
