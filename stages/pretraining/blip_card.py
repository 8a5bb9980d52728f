"""The model card of the shipped BLIP."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

from transformers import BlipConfig

from stages.core.atomic import write_text
from stages.core.train_state import TrainState
from stages.data.scenes import web
from stages.params.pretrain_blip import PretrainBlip
from stages.pretraining import captioned_scenes
from stages.pretraining.card import (
    DATA_SOURCES,
    CardInfo,
    describe_training,
    format_percent,
    markdown_table,
    plot_curve,
)

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
    plot_curve(folder / "curve.png", state, "percent, held out", captioned_scenes.PLOTTED, 100)
    vision: Any = config.vision_config
    text: Any = config.text_config
    noise = ", ".join(f"{key.replace('_', ' ')} {value:g}" for key, value in asdict(web.Noise()).items())
    scores = [
        (description, *(format_percent(result[metric]) for result in results.values()))
        for metric, description in METRICS.items()
    ]
    points = [
        (f"{point['images']:,}", f"{point['loss']:.3f}", *(format_percent(point[metric]) for metric in METRICS))
        for point in state.curve
    ]
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
        "The training data has another style than the task's, as the original checkpoint was trained on noisy pairs "
        "from the web (`stages/data/scenes/web.py`): scenes of 1 to 4 objects, mostly on textures, with digits by "
        "writers that the task's splits do not use, and captions that omit or confuse objects. Probabilities: "
        f"{noise}.",
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
