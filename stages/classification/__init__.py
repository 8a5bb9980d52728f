"""Image classification: a pretrained ViT with a new classification layer, fine-tuned as a whole."""

from pathlib import Path

WEIGHTS = Path("data/models/classification")  # / KEY / best.safetensors, last.safetensors
PREDICTIONS = Path("data/predictions/classification")  # / KEY.parquet
# Names the seed of all bootstrap samples. All settings share them, so differences between settings are paired.
BOOTSTRAP = "classification/bootstrap"
