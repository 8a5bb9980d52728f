"""The model card of the shipped CATR."""

from pathlib import Path

from stages.core.atomic import write_text
from stages.core.train_state import TrainState
from stages.models.catr import WEIGHTS, CatrConfig
from stages.params.pretrain_catr import PretrainCatr
from stages.pretraining.captioned_scenes import METRICS
from stages.pretraining.captioner_card import describe_data, describe_results
from stages.pretraining.card import CardInfo, describe_training


def write_card(
    folder: Path,
    recipe: PretrainCatr,
    config: CatrConfig,
    info: CardInfo,
    state: TrainState,
    results: dict[str, dict[str, float]],
) -> None:
    """Write `README.md` and `curve.png` into `folder`; `results` maps a style of scenes to its `METRICS`."""
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
        f"{describe_data('other images')} Besides captions, the ResNet learned from image-level labels which of 20 "
        "classes a scene contains, and the color and the place of each class, one of nine. No masks were used.",
        "",
        *describe_results(folder, METRICS, info, state, results),
    ]
    write_text(folder / "README.md", "\n".join(lines))
