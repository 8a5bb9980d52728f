"""Segmentation heads on frozen patch tokens."""

from pathlib import Path

FEATURES = Path("data/features/segmentation")
BACKBONE_FEATURES = Path("data/features/backbones")  # one folder per compared backbone
BACKBONES = "backbones"  # the task of the runs on compared backbones
PREDICTIONS = Path("data/predictions/segmentation")
BOOTSTRAP = "segmentation/bootstrap"  # seed name: all heads share it, so that their differences are paired


def backbone_run_name(backbone: str, head: str) -> str:
    """The name of a head's runs on a compared backbone."""
    return f"{backbone}-{head}"
