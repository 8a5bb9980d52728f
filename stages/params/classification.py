"""Params of classification: the settings under which a ViT is fine-tuned."""

from typing import Literal, Self

from pydantic import Field, StrictBool

from stages.params.section import Count, Name, Rate, Section


class NamedRates(Section):
    """Learning rates that a setting may name. They depend on the profile's ViT: small ones tolerate higher rates."""

    base: Rate
    high: Rate


class NamedSizes(Section):
    """Input sizes that a setting may name: the side of the square image, in pixels."""

    base: Count
    large: Count


class Classifier(Section):
    """A profile's pretrained ViT for classification, and its values for the names that settings use."""

    backbone: str
    lr: NamedRates
    size: NamedSizes


class Setting(Section):
    """One fine-tuning with Adam. One optimizer step accumulates the gradients of `accumulate` batches."""

    lr: Rate | Literal["base", "high"]
    augment: StrictBool
    size: Count | Literal["base", "large"]
    batch_size: Count
    accumulate: Count
    epochs: Count

    def resolved(self, classifier: Classifier) -> Self:
        """Return a copy in which the profile's numbers replace names."""
        lr = getattr(classifier.lr, self.lr) if isinstance(self.lr, str) else self.lr
        size = getattr(classifier.size, self.size) if isinstance(self.size, str) else self.size
        return self.model_copy(update={"lr": lr, "size": size})


class Classification(Section):
    """The classification task."""

    settings: dict[Name, Setting] = Field(min_length=1)
