"""The model card of the shipped BLIP."""

from pathlib import Path
from typing import Any

from transformers import BlipConfig

from stages.core.atomic import write_text
from stages.core.train_state import TrainState
from stages.params.pretrain_blip import PretrainBlip
from stages.pretraining import captioned_scenes
from stages.pretraining.captioner_card import describe_data, describe_results
from stages.pretraining.card import CardInfo, describe_training

METRICS = {"R@1": "the nearest of all captions is the scene's own (R@1, image to text)", **captioned_scenes.METRICS}


def write_card(
    folder: Path,
    recipe: PretrainBlip,
    config: BlipConfig,
    info: CardInfo,
    state: TrainState,
    results: dict[str, dict[str, float]],
) -> None:
    """Write `README.md` and `curve.png` into `folder`; `results` maps a style of scenes to its `METRICS`."""
    vision: Any = config.vision_config
    text: Any = config.text_config
    lines = [
        "# blip_scenes: a small BLIP pretrained on generated scenes",
        "",
        f"BLIP (Li et al. 2022) in the classes of transformers, at a small size: image tower with "
        f"{vision.num_hidden_layers} layers of width {vision.hidden_size} on {vision.image_size}x{vision.image_size} "
        f"images behind a convolutional stem, text encoder and decoder with {text.num_hidden_layers} layers of width "
        f"{text.hidden_size} each, {text.num_attention_heads} heads, a vocabulary of {text.vocab_size} whole words and "
        "special tokens, "
        f"projections to {config.image_text_hidden_size}; {info.parameters:,} parameters in training, where encoder "
        "and decoder share all weights but their self-attention. One file loads into `BlipForConditionalGeneration` "
        "and into `BlipForImageTextRetrieval` (`stages/models/blip.py`), including the image-text matching head.",
        "",
        f"{describe_training('pretrain_blip', recipe, state, info.machine)} The image tower starts from `vit_scenes`.",
        "",
        describe_data("noisy pairs from the web"),
        "",
        *describe_results(folder, METRICS, info, state, results),
    ]
    write_text(folder / "README.md", "\n".join(lines))
