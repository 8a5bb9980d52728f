"""The parts that the model cards of the shipped checkpoints share."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from stages.core import processes
from stages.core.figures import figure
from stages.core.train_state import TrainState
from stages.params.recipe import Recipe

DATA_SOURCES = (
    "The digits come from scikit-learn's `load_digits` (UCI, CC BY 4.0), the photographs from its "
    "`load_sample_images` (CC BY)."
)


@dataclass(frozen=True)
class CardInfo:
    """Values for a card that are neither in the params nor in the training state."""

    parameters: int
    held_out: int  # number of scenes that the metrics are computed on
    machine: str


def describe_device(device: torch.device) -> str:
    """The machine that a model is trained on, in words."""
    threads = torch.get_num_threads()
    name = f"a CPU with {threads} thread{'s' if threads > 1 else ''}"
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
    if processes.count() > 1:
        return f"{processes.count()} processes, each on {name}"
    return name


def describe_training(stage: str, recipe: Recipe, state: TrainState, machine: str) -> str:
    """How a checkpoint was trained: command, duration, machine, number of scenes and recipe."""
    settings = ", ".join(f"{key} {value}" for key, value in recipe.model_dump().items())
    return (
        f"Trained by the stage `{stage}` (`stages/pretraining/{stage}.py`; `make pretrain` runs it) in "
        f"{state.seconds:,.0f} seconds on {machine}, on {state.curve[-1]['images']:,} generated scenes, each used "
        f"once. Recipe: {settings}."
    )


def format_percent(value: float) -> str:
    """A percentage; a dash for NaN, a share of nothing."""
    return "-" if math.isnan(value) else f"{value:.1f}"


def markdown_table(header: Iterable[str], rows: Iterable[Iterable[str]]) -> list[str]:
    """The lines of a Markdown table whose columns are right-aligned but for the first."""
    header = list(header)
    lines = [header, ["---", *["---:"] * (len(header) - 1)], *rows]
    return [f"| {' | '.join(cells)} |" for cells in lines]


def plot_curve(path: Path, state: TrainState, label: str, metrics: Sequence[str], highest: float = 1) -> None:
    """Plot the training loss and, on a second axis from 0 to `highest`, up to three metrics against the images seen."""
    images = [point["images"] / 1000 for point in state.curve]
    with figure(path, figsize=(6, 3.2)) as (_, loss_axis):
        loss_axis.plot(images, [point["loss"] for point in state.curve], color="tab:blue")
        loss_axis.set_xlabel("images seen (thousands)")
        loss_axis.set_ylabel("training loss", color="tab:blue")
        loss_axis.set_ylim(bottom=0)
        metric_axis = loss_axis.twinx()
        for metric, style in zip(metrics, ("-", "--", ":"), strict=False):
            metric_axis.plot(
                images,
                [point[metric] for point in state.curve],
                style,
                color="tab:orange",
                label=metric.replace("_", " "),
            )
        metric_axis.set_ylabel(label, color="tab:orange")
        metric_axis.set_ylim(0, highest)
        if len(metrics) > 1:
            metric_axis.legend(fontsize=8, frameon=False, loc="center right")
