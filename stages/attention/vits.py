"""The ViTs that are looked into."""

import re
from pathlib import Path

from stages.backbones import vit
from stages.backbones.vit import Backbone
from stages.stage import InputError


def load_vit(source: str, key: str) -> Backbone:
    """A pretrained ViT; raises `InputError` naming the param `key` where there is none."""
    try:
        return vit.load(source)
    except (OSError, ValueError) as fault:
        raise InputError(f"{key} = '{source}': {str(fault).strip().splitlines()[0]}") from fault


def short_name(source: str) -> str:
    """A ViT's name in those of runs and files: of a file of ours, its folder's."""
    path = Path(source)
    return re.sub(r"[^A-Za-z0-9_-]", "_", path.parent.name if path.suffix == ".safetensors" else source)
