"""Segmentation heads on frozen patch tokens."""

from pathlib import Path

FEATURES = Path("data/features/segmentation")
PREDICTIONS = Path("data/predictions/segmentation")
BOOTSTRAP = "segmentation/bootstrap"  # names the seed that all heads' intervals share, so that differences are paired
