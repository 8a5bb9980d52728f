"""The tasks' main metrics, each with its bootstrap over the validation images."""

from functools import cache
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from stages import captioning, classification, retrieval, segmentation
from stages.captioning.bleu import bootstrap_bleu, count_ngrams
from stages.core.bootstrap import bootstrap_means
from stages.core.runs import Run
from stages.data.images import read_mask
from stages.data.manifest import Manifest
from stages.report.section import Inputs
from stages.report.significance import Metric
from stages.retrieval import RECALL
from stages.segmentation.iou import confusion, mean_iou_draws


def task_metrics(inputs: Inputs) -> dict[str, Metric]:
    """The metric of every task that was not skipped.

    The runs of a task share one seed, so that all of them are measured on the same samples of images.
    """
    seed_for = inputs.experiment.seed_for
    recall = recall_metric(seed_for(retrieval.BOOTSTRAP))  # one for both tables: claims compare rows across them
    metrics = {
        "segmentation": miou_metric(inputs.manifest, seed_for(segmentation.BOOTSTRAP)),
        "captioning": bleu_metric(seed_for(captioning.BOOTSTRAP)),
        "retrieval": recall,
        "retrieval_grid": recall,
        "classification": accuracy_metric(seed_for(classification.BOOTSTRAP)),
    }
    return {task: metric for task, metric in metrics.items() if task in inputs.results}


def miou_metric(manifest: Manifest, seed: int) -> Metric:
    """The metric of segmentation: mean IoU of the predicted masks."""

    @cache  # the masks are the same for all heads
    def read_truths() -> dict[str, np.ndarray]:
        return {row.image_id: read_mask(Path(row.mask)) for row in manifest.split("val") if row.mask}

    def draw_run(run: Run) -> np.ndarray:
        predictions = {row["image_id"]: row for row in _read_predictions(run)}
        matrices = []
        for image_id, truth in read_truths().items():
            row = predictions[image_id]
            predicted = np.frombuffer(row["mask"], np.uint8).reshape(1, row["height"], row["width"])
            matrices.append(confusion(truth[None], predicted, len(manifest.classes)))
        return mean_iou_draws(np.concatenate(matrices), seed=seed)

    return Metric("miou", "mIoU", draw_run, seed)


def bleu_metric(seed: int) -> Metric:
    """The metric of captioning: BLEU-4."""

    @cache  # all cells and seeds are in one file
    def read_captions(path: str) -> dict[tuple[str, int | None], tuple[list[str], list[list[str]]]]:
        captions: dict[tuple[str, int | None], tuple[list[str], list[list[str]]]] = {}
        for row in pq.read_table(path, columns=["cell", "seed", "caption", "reference"]).to_pylist():
            predictions, references = captions.setdefault((row["cell"], row["seed"]), ([], []))
            predictions.append(row["caption"])
            references.append([row["reference"]])
        return captions

    def draw_run(run: Run) -> np.ndarray:
        predictions, references = read_captions(run.artifacts["predictions"])[run.name, run.seed]
        return bootstrap_bleu(count_ngrams(predictions, references), seed=seed)

    return Metric("bleu", "BLEU", draw_run, seed)


def recall_metric(seed: int) -> Metric:
    """The metric of retrieval, R@1 from image to text: the share of images whose own caption is ranked first."""

    def draw_run(run: Run) -> np.ndarray:
        hits = [100.0 * (row["image_to_text_rank"] == 1) for row in _read_predictions(run)]
        return bootstrap_means(np.array(hits), seed=seed)

    return Metric(RECALL, "R@1", draw_run, seed)


def accuracy_metric(seed: int) -> Metric:
    """The metric of classification: the share of images whose label is predicted."""

    def draw_run(run: Run) -> np.ndarray:
        hits = [100.0 * (row["predicted"] == row["label"]) for row in _read_predictions(run)]
        return bootstrap_means(np.array(hits), seed=seed)

    return Metric("accuracy", "Accuracy", draw_run, seed)


def _read_predictions(run: Run) -> list[dict]:
    """One row per validation image, in the manifest's order."""
    return pq.read_table(run.artifacts["predictions"]).to_pylist()
