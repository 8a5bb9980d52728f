"""Captions generated from cached image states, and their scores."""

from pathlib import Path

PREDICTIONS = Path("data/predictions/captioning/captions.parquet")
BOOTSTRAP = "captioning/bootstrap"  # seed name; all cells share it, so that their bootstrap differences are paired
