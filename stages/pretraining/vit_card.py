"""The model card of the shipped ViT."""

from math import prod
from pathlib import Path

from stages.core.atomic import write_text
from stages.core.train_state import TrainState
from stages.models.vit import Architecture
from stages.params.pretrain import Pretrain
from stages.pretraining.card import DATA_SOURCES, CardInfo, describe_training, markdown_table, plot_curve


def write_card(
    folder: Path,
    recipe: Pretrain,
    architecture: Architecture,
    info: CardInfo,
    state: TrainState,
    average_precision: dict[str, float],
) -> None:
    """Write `README.md` and `curve.png` into `folder`; `average_precision` is by name of a class or color."""
    plot_curve(folder / "curve.png", state, "held out", ["mAP", "place"])
    patch = prod(architecture.strides)
    points = [
        (f"{point['images']:,}", f"{point['loss']:.4f}", f"{point['mAP']:.3f}", f"{point['place']:.3f}")
        for point in state.curve
    ]
    lines = [
        "# vit_scenes: a small ViT pretrained on generated scenes",
        "",
        f"A Vision Transformer ({architecture.side}x{architecture.side} images, {patch}x{patch} patches behind a "
        f"convolutional stem, width {architecture.dim}, {architecture.depth} blocks, {architecture.heads} heads, "
        f"{info.parameters:,} parameters) pretrained from image-level labels only: which of 20 classes and 8 colors a "
        "scene contains, and at which of nine places each class is, as a caption would say. No masks were used, and no "
        "digits of the task's splits `train` and `val`, which have other writers (`stages/data/scenes/digits.py`).",
        "",
        describe_training("pretrain", recipe, state, info.machine),
        "",
        f"On {info.held_out} held-out scenes, with digits that neither the training scenes nor the task's splits use: "
        f"mean average precision {state.curve[-1]['mAP']:.3f} over the 20 classes, predicted from the class token; "
        f"{100 * state.curve[-1]['place']:.1f} % of the objects' places are right, predicted from the patches.",
        "",
        "![Loss and mean average precision against images seen](curve.png)",
        "",
        *markdown_table(
            ["", "average precision"], [(name, f"{value:.3f}") for name, value in average_precision.items()]
        ),
        "",
        *markdown_table(["images seen", "training loss", "mAP, held out", "places right"], points),
        "",
        DATA_SOURCES,
        "",
    ]
    write_text(folder / "README.md", "\n".join(lines))
