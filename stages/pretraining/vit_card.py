"""The model card of a shipped checkpoint: what it is, what it cost, how good it is."""

from dataclasses import dataclass
from math import prod
from pathlib import Path

import matplotlib
import torch

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from stages.core.atomic import atomic_write, write_text
from stages.core.train_state import TrainState
from stages.models.vit import Architecture
from stages.params.pretrain import Pretrain

SOURCES = (
    "The digits come from scikit-learn's `load_digits` (UCI, CC BY 4.0), the photographs from its "
    "`load_sample_images` (CC BY)."
)


@dataclass(frozen=True)
class Facts:
    """What the card says of the model and of where it was made."""

    architecture: Architecture
    parameters: int
    held_out: int  # scenes that it is measured on
    machine: str


def write_card(
    folder: Path, recipe: Pretrain, facts: Facts, progress: TrainState, average_precision: dict[str, float]
) -> None:
    """Write `README.md` and `curve.png` into `folder` from a finished pretraining of the ViT."""
    draw_curve(folder / "curve.png", progress, "mAP of 20 classes, held out", ["mAP"])
    last, vit = progress.curve[-1], facts.architecture
    patch = prod(vit.strides)
    lines = [
        "# vit_scenes: a small ViT pretrained on generated scenes",
        "",
        f"A Vision Transformer ({vit.side}x{vit.side} images, {patch}x{patch} patches behind a convolutional stem, "
        f"{vit.dim} wide, {vit.depth} blocks, {vit.heads} heads, {facts.parameters:,} parameters) pretrained from "
        "image-level labels alone: which of 20 classes and 8 colors a scene holds. It saw no mask, and no digit that "
        "the task's `train` and `val` splits use (their writers are others: `stages/data/scenes/digits.py`).",
        "",
        made_by("pretrain", recipe, progress, facts.machine),
        "",
        f"On {facts.held_out} held-out scenes, with the pretraining block's own last digits (neither task split): "
        f"mean average precision {last['mAP']:.3f} over the 20 classes, read from the class token.",
        "",
        "![Loss and mean average precision against images seen](curve.png)",
        "",
        "| | average precision |",
        "|---|---:|",
        *(f"| {name} | {value:.3f} |" for name, value in average_precision.items()),
        "",
        "| images seen | training loss | mAP, held out |",
        "|---:|---:|---:|",
        *(f"| {point['images']:,} | {point['loss']:.4f} | {point['mAP']:.3f} |" for point in progress.curve),
        "",
        SOURCES,
        "",
    ]
    write_text(folder / "README.md", "\n".join(lines))


def made_by(stage: str, recipe: Pretrain, progress: TrainState, machine: str) -> str:
    """What made a checkpoint, from how many scenes, in how many seconds."""
    asked = ", ".join(f"{key} {value}" for key, value in recipe.model_dump().items())
    return (
        f"Made by `dvc repro -f {stage}` (`stages/pretraining/{stage}.py`) in {progress.seconds:,.0f} seconds "
        f"on {machine}: {progress.curve[-1]['images']:,} scenes, each drawn once and seen once. Recipe: {asked}."
    )


def describe(device: torch.device) -> str:
    """Where a model was made, in words."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"a CPU with {torch.get_num_threads()} threads"


def draw_curve(path: Path, progress: TrainState, measure: str, keys: list[str]) -> None:
    """Training loss, and beside it the shares that `keys` of the curve hold, against images seen."""
    images = [point["images"] / 1000 for point in progress.curve]
    figure, loss = plt.subplots(figsize=(6, 3.2), layout="constrained")
    share = loss.twinx()
    loss.plot(images, [point["loss"] for point in progress.curve], color="tab:blue")
    for key, style in zip(keys, ("-", "--", ":"), strict=False):
        share.plot(images, [point[key] for point in progress.curve], style, color="tab:orange", label=key)
    loss.set_xlabel("images seen (thousands)")
    loss.set_ylabel("training loss", color="tab:blue")
    share.set_ylabel(measure, color="tab:orange")
    share.set_ylim(0, 1)
    loss.set_ylim(bottom=0)
    if len(keys) > 1:
        share.legend(fontsize=8, frameon=False, loc="center right")
    with atomic_write(path) as beside:
        figure.savefig(beside, dpi=120, format="png")
    plt.close(figure)
