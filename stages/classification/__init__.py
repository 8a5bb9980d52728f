"""A pretrained ViT fine-tuned to tell what is in a picture."""

from pathlib import Path

WEIGHTS = Path("data/models/classification")  # / NAME / best.safetensors, last.safetensors
PREDICTIONS = Path("data/predictions/classification")  # / NAME.parquet
BOOTSTRAP = "classification/bootstrap"  # names the seed that all settings' draws share: their differences are paired
