"""Segmentation heads on frozen patch tokens."""

from pathlib import Path

FEATURES = Path("data/features/segmentation")
BACKBONE_FEATURES = Path("data/features/backbones")  # one folder per compared backbone
PREDICTIONS = Path("data/predictions/segmentation")
BOOTSTRAP = "segmentation/bootstrap"  # seed name: all heads share it, so that their differences are paired
