"""Image-text retrieval with projections of frozen class-token states."""

from pathlib import Path

PREDICTIONS = Path("data/predictions")  # / task / NAME.parquet
WEIGHTS = Path("data/models")  # / task / NAME.safetensors
BOOTSTRAP = "retrieval/bootstrap"  # seed name; all runs share it, so that their bootstrap differences are paired
