"""IoU of every class and head after the last epoch."""

from dataclasses import dataclass

from stages.report.results import Result, unique_labels
from stages.report.segmentation import head_label


@dataclass(frozen=True)
class ClassIou:
    """Values in percent, means over a head's seeds: `values` has one row per class and one column per head.

    None stands for a class that is in neither truth nor prediction of any of the head's runs.
    """

    heads: tuple[str, ...]
    classes: tuple[str, ...]
    values: tuple[tuple[float | None, ...], ...]
    means: tuple[float, ...]
    seeds: int


def class_iou(heads: list[Result], classes: tuple[str, ...]) -> ClassIou:
    """IoU by class and head, and every head's mIoU."""
    values = tuple(tuple(_mean_over_seeds(head, name) for head in heads) for name in classes)
    labels = tuple(unique_labels(heads, head_label))
    return ClassIou(labels, classes, values, tuple(head.metrics["miou"] for head in heads), len(heads[0].runs))


def _mean_over_seeds(head: Result, name: str) -> float | None:
    last_epochs = [run.history[-1]["iou"] for run in head.runs]
    values = [iou[name] for iou in last_epochs if iou[name] is not None]
    return sum(values) / len(values) if values else None
