"""Image-text retrieval with projections of frozen class-token states."""

from pathlib import Path

PREDICTIONS = Path("data/predictions")  # / task / KEY.parquet
WEIGHTS = Path("data/models")  # / task / KEY.safetensors
RECALL = "image_to_text_r_at_1"  # the metric that the tables print
BOOTSTRAP = "retrieval/bootstrap"  # seed name; all runs share it, so that their bootstrap differences are paired
