"""Params of classification: the settings under which a ViT is fine-tuned."""

from typing import Literal, Self

from pydantic import Field, StrictBool, model_validator

from stages.params.model_source import ModelSource
from stages.params.section import BatchSize, Count, Epochs, Name, Rate, Section, Seeds, Side


class NamedRates(Section):
    """Learning rates that a setting may name. They depend on the profile's ViT: small ones tolerate higher rates."""

    base: Rate
    high: Rate


class NamedSizes(Section):
    """Input sizes that a setting may name: the side of the square image, in pixels."""

    base: Side
    large: Side


class Classifier(Section):
    """A profile's pretrained ViT for classification, and its values for the names that settings use.

    With `float64`, it is fine-tuned in double precision, whatever `compute.precision` says.
    """

    backbone: ModelSource
    float64: StrictBool
    lr: NamedRates
    size: NamedSizes


class FineTuning(Section):
    """One fine-tuning with Adam, in numbers. One optimizer step accumulates the gradients of `accumulate` batches.

    With `equal_steps`, an epoch ends after as many steps as it would have with that value of `accumulate`.
    """

    lr: Rate
    augment: StrictBool
    size: Side
    batch_size: BatchSize
    accumulate: Count
    epochs: Epochs
    equal_steps: Count | None = None

    @model_validator(mode="after")
    def _enough_images(self) -> Self:
        if self.equal_steps is not None and self.equal_steps <= self.accumulate:
            raise ValueError(
                f"equal_steps = {self.equal_steps}: must be greater than accumulate ({self.accumulate}), or null"
            )
        return self


class Setting(FineTuning):
    """A fine-tuning as params.yaml gives it: `lr` and `size` may be names that the profile's classifier defines."""

    lr: Rate | Literal["base", "high"]  # type: ignore[assignment]  # wider than in `FineTuning`, which `resolved` returns
    size: Side | Literal["base", "large"]  # type: ignore[assignment]

    def resolved(self, classifier: Classifier) -> FineTuning:
        """Return the setting with the profile's numbers in place of names."""
        lr = getattr(classifier.lr, self.lr) if isinstance(self.lr, str) else self.lr
        size = getattr(classifier.size, self.size) if isinstance(self.size, str) else self.size
        return FineTuning(**{**self.model_dump(), "lr": lr, "size": size})


class Classification(Section):
    """The classification task."""

    seeds: Seeds
    settings: dict[Name, Setting] = Field(min_length=1)
