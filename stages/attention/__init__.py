"""Attention maps: position embeddings, the class token's attention, and the caption decoder's, word by word."""

import re
from pathlib import Path

from stages.params.model_source import display_name, is_checkpoint_file

PICTURES = Path("reports/pictures")  # / STAGE / *.png
SHARES = Path("data/attention")  # / STAGE / *.parquet
# Names the seed of all bootstrap samples. Two models share them, so their intervals are of the same images.
BOOTSTRAP = "attention/bootstrap"


def short_name(source: str) -> str:
    """A ViT's name in the names of runs and files.

    For a checkpoint file, its folder and, unless it is `model`, its stem: `data/vit_scenes/model.safetensors` gives
    `vit_scenes`.
    """
    name = display_name(source)
    if is_checkpoint_file(name):
        path = Path(name)
        folder = path.parent.name
        stem = "" if path.stem == "model" and folder else path.stem
        name = "_".join(part for part in (folder, stem) if part)
    return re.sub(r"[^A-Za-z0-9_-]", "_", name)
