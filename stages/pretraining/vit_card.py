"""The model card of the shipped ViT."""

from math import prod
from pathlib import Path

from stages.core.atomic import write_text
from stages.core.train_state import TrainState
from stages.models.vit import Architecture
from stages.params.pretrain import Pretrain
from stages.pretraining.card import DATA_SOURCES, CardInfo, describe_training, markdown_table, plot_curve

# Shares from 0 to 1, on held-out scenes.
METRICS = {"mAP": "mAP, held out", "place": "places right", "color": "colors right", "ninth": "evidence in place"}


def write_card(
    folder: Path,
    recipe: Pretrain,
    architecture: Architecture,
    info: CardInfo,
    state: TrainState,
    average_precision: dict[str, float],
) -> None:
    """Write `README.md` and `curve.png` into `folder`; `average_precision` is by name of a class or color."""
    plot_curve(folder / "curve.png", state, "held out", ["mAP", "place", "color"])
    patch = prod(architecture.strides)
    points = [
        (f"{point['images']:,}", f"{point['loss']:.4f}", *(f"{point[metric]:.3f}" for metric in METRICS))
        for point in state.curve
    ]
    last = state.curve[-1]
    lines = [
        "# vit_scenes: a small ViT pretrained on generated scenes",
        "",
        f"A Vision Transformer ({architecture.side}x{architecture.side} images, {patch}x{patch} patches behind a "
        f"convolutional stem, width {architecture.dim}, {architecture.depth} blocks, {architecture.heads} heads, "
        f"{info.parameters:,} parameters) pretrained from image-level labels only: which of 20 classes and 8 colors a "
        "scene contains, and the color and the place of each class, one of nine, as a caption would say. No masks were "
        "used, and no digits of the task's splits `train` and `val`, which have other writers "
        "(`stages/data/scenes/digits.py`).",
        "",
        describe_training("pretrain", recipe, state, info.machine),
        "",
        f"On {info.held_out} held-out scenes, with digits that neither the training scenes nor the task's splits use: "
        f"mean average precision {last['mAP']:.3f} over the 20 classes, predicted from the class token. Predicted from "
        f"the patches of an object's class, {100 * last['place']:.1f} % of the objects' places and "
        f"{100 * last['color']:.1f} % of their colors are right; in {100 * last['ninth']:.1f} %, most of the evidence "
        "for the class lies in the ninth of the image that the object's center is in.",
        "",
        "![Loss and mean average precision against images seen](curve.png)",
        "",
        *markdown_table(
            ["", "average precision"], [(name, f"{value:.3f}") for name, value in average_precision.items()]
        ),
        "",
        *markdown_table(["images seen", "training loss", *METRICS.values()], points),
        "",
        DATA_SOURCES,
        "",
    ]
    write_text(folder / "README.md", "\n".join(lines))
