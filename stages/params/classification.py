"""How classifiers are fine-tuned: the settings of the second report's four rows."""

from typing import Self, TypeVar

from pydantic import Field, StrictBool

from stages.params.section import Count, Name, Rate, Section, or_named

T = TypeVar("T")


class NamedRates(Section):
    """Learning rates that a setting may name: a small ViT collapses elsewhere than a large one."""

    base: Rate
    high: Rate


class NamedSizes(Section):
    """Sides of the square input, in pixels, that a setting may name."""

    base: Count
    large: Count


class Classifier(Section):
    """What a profile brings to fine-tuning: the pretrained ViT, and what `lr` and `size` mean for it."""

    backbone: str
    lr: NamedRates
    size: NamedSizes


class Setting(Section):
    """One fine-tuning with Adam. `lr` and `size` are numbers, or names that the profile gives a meaning.

    Gradients of `accumulate` batches make one step.
    """

    lr: or_named(Rate, "base", "high")
    augment: StrictBool
    size: or_named(Count, "base", "large")
    batch_size: Count
    accumulate: Count
    epochs: Count

    def resolved(self, classifier: Classifier) -> Self:
        """The setting in numbers."""
        lr, size = _meant(self.lr, classifier.lr), _meant(self.size, classifier.size)
        return self.model_copy(update={"lr": lr, "size": size})


def _meant(value: T | str, names: Section) -> T:
    return getattr(names, value) if isinstance(value, str) else value


class Classification(Section):
    """The classification task."""

    settings: dict[Name, Setting] = Field(min_length=1)
