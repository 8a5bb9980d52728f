"""The ViTs that are looked into."""

from stages.backbones import vit
from stages.backbones.vit import Backbone
from stages.stage import InputError


def load_vit(source: str, key: str) -> Backbone:
    """A pretrained ViT; raises `InputError` naming the param `key` where there is none."""
    try:
        return vit.load(source)
    except (OSError, ValueError) as fault:
        raise InputError(f"{key} = '{source}': {str(fault).strip().splitlines()[0]}") from fault
