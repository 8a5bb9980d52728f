"""A fine-tuned classifier: images in, labels and their probabilities out."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from PIL import Image

from stages.classification import classifier
from stages.classification.classifier import Classifier
from stages.classification.pixels import plain_view
from stages.classification.training import EVAL_BATCH_SIZE
from stages.models.compute import get_device, mixed_precision
from stages.params.compute import Compute


class ImageClassifier:
    """Predicts labels as the run that trained the classifier did for the validation images."""

    def __init__(self, network: Classifier, compute: Compute):
        self.network = network.to(get_device())
        self.compute = compute

    @torch.inference_mode()
    def predict(self, images: np.ndarray) -> pd.DataFrame:
        """The most probable `label` and its `probability` for each of the RGB images `(N, H, W, 3)` uint8."""
        views = [plain_view(Image.fromarray(image), self.network.size) for image in images]
        logits_per_batch = []
        for pixels in torch.stack(views).split(EVAL_BATCH_SIZE):
            with mixed_precision(self.compute):
                logits_per_batch.append(self.network(pixels.to(get_device())).float().cpu())
        best = torch.cat(logits_per_batch).softmax(1).max(1)
        labels = [self.network.labels[index] for index in best.indices.tolist()]
        return pd.DataFrame({"label": labels, "probability": best.values.numpy()})


def _load_pyfunc(folder: str) -> ImageClassifier:
    """MLflow's entry point."""
    model = json.loads((Path(folder) / "model.json").read_text())
    compute = Compute(precision=model["precision"], compile=False, workers=0, live=False)
    return ImageClassifier(classifier.load(Path(folder) / model["weights"]), compute)
