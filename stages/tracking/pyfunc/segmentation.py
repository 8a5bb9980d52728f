"""A segmentation head with its frozen backbone as a model of MLflow."""

import json
from pathlib import Path

from stages.models import vit
from stages.params.compute import Compute
from stages.segmentation.segmenter import Segmenter, load_head


def _load_pyfunc(folder: str) -> Segmenter:
    """MLflow's entry point."""
    model = json.loads((Path(folder) / "model.json").read_text())
    backbone = vit.load(model["source"], Path(folder) / model["backbone"])
    compute = Compute(precision=model["precision"], compile=False, workers=0, live=False)
    head, _ = load_head(Path(folder) / model["weights"])
    return Segmenter(backbone, head, compute)
