"""The model card of the shipped CATR."""

from dataclasses import asdict
from pathlib import Path

from stages.core.atomic import write_text
from stages.core.train_state import TrainState
from stages.data.scenes import web
from stages.models.catr import WEIGHTS, CatrConfig
from stages.params.pretrain_catr import PretrainCatr
from stages.pretraining.captioned_scenes import METRICS, PLOTTED
from stages.pretraining.card import (
    DATA_SOURCES,
    CardInfo,
    describe_training,
    format_percent,
    markdown_table,
    plot_curve,
)


def write_card(
    folder: Path,
    recipe: PretrainCatr,
    config: CatrConfig,
    info: CardInfo,
    state: TrainState,
    results: dict[str, dict[str, float]],
) -> None:
    """Write `README.md` and `curve.png` into `folder`; `results` maps a style of scenes to its `METRICS`."""
    plot_curve(folder / "curve.png", state, "percent, held out", PLOTTED, 100)
    noise = ", ".join(f"{key.replace('_', ' ')} {value:g}" for key, value in asdict(web.Noise()).items())
    scores = [
        (description, *(format_percent(result[metric]) for result in results.values()))
        for metric, description in METRICS.items()
    ]
    points = [
        (f"{point['images']:,}", f"{point['loss']:.3f}", *(format_percent(point[metric]) for metric in METRICS))
        for point in state.curve
    ]
    blocks = ", ".join(map(str, config.blocks))
    lines = [
        "# catr_scenes: a small CATR pretrained on generated scenes",
        "",
        "CATR (github.com/saahiluppal/catr), a captioner after DETR (Carion et al. 2020), at a small size: a ResNet of "
        f"{blocks} bottleneck blocks with {config.expansion / 4:g} times the width of ResNet-101 and a dilated last "
        f"stage, on images with {config.longer_side} pixels on their longer side; an encoder with "
        f"{config.encoder_layers} and a decoder with {config.decoder_layers} layers of width {config.hidden}, "
        f"{config.heads} heads, a vocabulary of {config.vocabulary} whole words and special tokens; "
        f"{info.parameters:,} parameters. It loads with `stages/models/catr.py`; `{WEIGHTS}` has its config in the "
        "metadata, and its batch norm is frozen.",
        "",
        f"{describe_training('pretrain_catr', recipe, state, info.machine)} Nothing is pretrained on other images.",
        "",
        "The training data has another style than the task's, as the original checkpoint was trained on other images "
        "(`stages/data/scenes/web.py`): scenes of 1 to 4 objects, mostly on textures, with digits by writers that the "
        "task's splits do not use, and captions that omit or confuse objects. Probabilities: "
        f"{noise}. Besides captions, the ResNet learned from image-level labels which of 20 classes and 8 colors a "
        "scene contains. No masks were used.",
        "",
        f"On {info.held_out} held-out scenes per style, with digits that neither the training scenes nor the task's "
        "splits use, in percent:",
        "",
        *markdown_table(["", *results], scores),
        "",
        "The largest object is the one with the largest radius; captions are greedy, after the prompt *a picture of*.",
        "",
        "![Loss and metrics against images seen](curve.png)",
        "",
        *markdown_table(["images seen", "training loss", *(metric.replace("_", " ") for metric in METRICS)], points),
        "",
        DATA_SOURCES,
        "",
    ]
    write_text(folder / "README.md", "\n".join(lines))
