"""Projection heads over frozen class-token states: which caption belongs to which image."""

from pathlib import Path

PREDICTIONS = Path("data/predictions")  # / task / NAME.parquet
WEIGHTS = Path("data/models")  # / task / NAME.safetensors
BOOTSTRAP = "retrieval/bootstrap"  # names the seed that all rows' intervals share, so that differences are paired
