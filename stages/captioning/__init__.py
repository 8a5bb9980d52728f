"""Captions decoded from cached hidden states, and how good they are."""

from pathlib import Path

PREDICTIONS = Path("data/predictions/captioning/captions.parquet")
BOOTSTRAP = "captioning/bootstrap"  # names the seed that all cells' intervals share, so that differences are paired
