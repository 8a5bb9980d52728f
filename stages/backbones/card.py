"""The model card of a shipped checkpoint: what it is, what it cost, how good it is."""

from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from stages.writing import replacing


def write_card(folder: Path, recipe, device, progress, average_precision: dict[str, float]) -> None:
    """Write `README.md` and `curve.png` into `folder` from a finished pretraining."""
    _draw_curve(folder / "curve.png", progress.curve)
    last = progress.curve[-1]
    lines = [
        "# vit_scenes: a small ViT pretrained on generated scenes",
        "",
        "A Vision Transformer (80x80 images, 8x8 patches behind a convolutional stem, 128 wide, 4 blocks, 4 heads, "
        "0.95 M parameters) pretrained from image-level labels alone: which of 20 classes and 8 colours a scene "
        "holds. It never saw a mask, nor a digit by the writers of the task's `train` and `val` splits.",
        "",
        f"Made by `dvc repro -f pretrain` (`stages/backbones/pretrain.py`) in {progress.seconds / 60:.0f} minutes "
        f"on {_describe(device)}: {last['images']:,} scenes, each drawn once and seen once. "
        f"Recipe: {', '.join(f'{key} {value}' for key, value in recipe.model_dump().items())}.",
        "",
        f"On 1000 scenes by the last 100 of the 1000 pretraining digits (held-out writers; neither task split): "
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
        "The digits come from scikit-learn's `load_digits` (UCI, CC BY 4.0), the photographs from its "
        "`load_sample_images` (CC BY).",
        "",
    ]
    with replacing(folder / "README.md") as beside:
        beside.write_text("\n".join(lines), encoding="utf-8")


def _describe(device) -> str:
    import torch

    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"a CPU with {torch.get_num_threads()} threads"


def _draw_curve(path: Path, curve: list[dict]) -> None:
    images = [point["images"] / 1000 for point in curve]
    figure, loss = plt.subplots(figsize=(6, 3.2), layout="constrained")
    precision = loss.twinx()
    loss.plot(images, [point["loss"] for point in curve], color="tab:blue")
    precision.plot(images, [point["mAP"] for point in curve], color="tab:orange")
    loss.set_xlabel("images seen (thousands)")
    loss.set_ylabel("training loss", color="tab:blue")
    precision.set_ylabel("mAP of 20 classes, held out", color="tab:orange")
    precision.set_ylim(0, 1)
    loss.set_ylim(bottom=0)
    with replacing(path) as beside:
        figure.savefig(beside, dpi=120, format="png")
    plt.close(figure)
