"""The model card of the shipped BLIP."""

from dataclasses import asdict, dataclass
from pathlib import Path

from transformers import BlipConfig

from stages.core.atomic import write_text
from stages.core.train_state import TrainState
from stages.data.scenes import web
from stages.params.pretrain_blip import PretrainBlip
from stages.pretraining.vit_card import SOURCES, draw_curve, made_by

MEASURES = {
    "R@1": "the scene's caption is the nearest of all (R@1, image to text)",
    "class named": "a greedy caption names the class of the largest thing",
    "color named": "... with its color",
}


@dataclass(frozen=True)
class Facts:
    """What the card says of the model and of where it was made."""

    config: BlipConfig
    parameters: int
    held_out: int  # scenes that it is measured on
    machine: str


def write_card(
    folder: Path, recipe: PretrainBlip, facts: Facts, progress: TrainState, judged: dict[str, dict[str, float]]
) -> None:
    """Write `README.md` and `curve.png` into `folder`; `judged` holds `MEASURES` by style of scenes and captions."""
    draw_curve(folder / "curve.png", progress, "share of held-out scenes", list(MEASURES))
    image, text = facts.config.vision_config, facts.config.text_config
    noise = ", ".join(f"{key.replace('_', ' ')} {value:g}" for key, value in asdict(web.Noise()).items())
    lines = [
        "# blip_scenes: a small BLIP pretrained on generated scenes",
        "",
        f"BLIP (Li et al., 2022) in transformers' own classes, shrunk: image tower {image.num_hidden_layers} layers x "
        f"{image.hidden_size} on {image.image_size}x{image.image_size} images behind a convolutional stem, text "
        f"encoder and decoder {text.num_hidden_layers} layers x {text.hidden_size} each, {text.num_attention_heads} "
        f"heads, a vocabulary of {text.vocab_size} whole words, projections to {facts.config.image_text_hidden_size}; "
        f"{facts.parameters:,} parameters while training, as encoder and decoder share all but their self-attention. "
        "One file loads into `BlipForConditionalGeneration` and into `BlipForImageTextRetrieval` "
        "(`stages/models/blip.py`), the image-text matching head included.",
        "",
        f"{made_by('pretrain_blip', recipe, progress, facts.machine)} The image tower starts from `vit_scenes`.",
        "",
        "What it saw is another style than the task's, as the reports' checkpoint came from noisy pairs off the web "
        "(`stages/data/scenes/web.py`): scenes of 1 to 4 things, mostly on textures, by writers of which the task's "
        f"splits have none, with captions that leave out and mistake things. Shares: {noise}.",
        "",
        f"On {facts.held_out} held-out scenes each, with the pretraining block's own last digits (neither task split), "
        "in percent:",
        "",
        "| | " + " | ".join(judged) + " |",
        "|---|" + "---:|" * len(judged),
        *(f"| {words} | {_shares(judged, key)} |" for key, words in MEASURES.items()),
        "",
        "The largest thing is the one with the largest radius; captions are greedy behind *a picture of*.",
        "",
        "![Loss and measures against images seen](curve.png)",
        "",
        "| images seen | training loss | " + " | ".join(MEASURES) + " |",
        "|---:|---:|" + "---:|" * len(MEASURES),
        *(_point(point) for point in progress.curve),
        "",
        SOURCES,
        "",
    ]
    write_text(folder / "README.md", "\n".join(lines))


def _shares(judged: dict[str, dict[str, float]], key: str) -> str:
    return " | ".join(f"{100 * shares[key]:.1f}" for shares in judged.values())


def _point(point: dict) -> str:
    shares = " | ".join(f"{100 * point[key]:.1f}" for key in MEASURES)
    return f"| {point['images']:,} | {point['loss']:.3f} | {shares} |"
