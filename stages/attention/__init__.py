"""What transformers look at: position embeddings, the class token's attention, the decoder's word by word."""

import re
from pathlib import Path

from stages.params.model_source import display_name, is_checkpoint_file

PICTURES = Path("reports/pictures")  # / STAGE / *.png
SHARES = Path("data/attention")  # / STAGE.parquet
BOOTSTRAP = "attention/bootstrap"  # names the seed of all intervals: two models' draws are of the same images


def short_name(source: str) -> str:
    """A ViT's name in those of runs and files; of a file of ours, its folder's, and its own unless that is `model`."""
    name = display_name(source)
    if is_checkpoint_file(name):
        path = Path(name)
        parts = [path.parent.name, path.stem if path.stem != "model" or not path.parent.name else ""]
        name = "_".join(part for part in parts if part)
    return re.sub(r"[^A-Za-z0-9_-]", "_", name)
