"""The tasks' main metrics, each with its bootstrap over the validation images."""

from pathlib import Path

import numpy as np

from stages import captioning, classification, retrieval, segmentation
from stages.captioning.bleu import bootstrap_bleu, count_ngrams
from stages.core.bootstrap import bootstrap_means
from stages.core.runs import Run
from stages.data.images import read_mask
from stages.data.manifest import Manifest
from stages.report.predictions import iterate_masks, read_captions, read_columns
from stages.report.section import Inputs
from stages.report.significance import Metric
from stages.retrieval import RECALL
from stages.segmentation.iou import confusion, mean_iou_draws


def task_metrics(inputs: Inputs) -> dict[str, Metric]:
    """The metric of every task that was not skipped.

    The runs of a task share one seed, so that all of them are measured on the same samples of images.
    """
    seed_for = inputs.experiment.seed_for
    miou = miou_metric(inputs.manifest, seed_for(segmentation.BOOTSTRAP))  # one for both tasks: they are compared
    recall = recall_metric(seed_for(retrieval.BOOTSTRAP))  # one for both tables: claims compare rows across them
    metrics = {
        "segmentation": miou,
        "backbones": miou,
        "captioning": bleu_metric(seed_for(captioning.BOOTSTRAP)),
        "retrieval": recall,
        "retrieval_grid": recall,
        "classification": accuracy_metric(seed_for(classification.BOOTSTRAP)),
    }
    return {task: metric for task, metric in metrics.items() if task in inputs.results}


def miou_metric(manifest: Manifest, seed: int) -> Metric:
    """The metric of segmentation: mean IoU of the predicted masks."""

    masks = {row.image_id: Path(row.mask) for row in manifest.split("val") if row.mask}

    def draw_run(run: Run) -> np.ndarray:
        matrices = {}
        for image_id, predicted in iterate_masks(Path(run.artifacts["predictions"])):
            truth = read_mask(masks[image_id])
            matrices[image_id] = confusion(truth[None], predicted[None], len(manifest.classes))
        # In the manifest's order, as the bootstrap samples are of its images.
        return mean_iou_draws(np.concatenate([matrices[image_id] for image_id in masks]), seed=seed)

    return Metric("miou", "mIoU", draw_run, seed)


def bleu_metric(seed: int) -> Metric:
    """The metric of captioning: BLEU-4."""

    def draw_run(run: Run) -> np.ndarray:
        captions = read_captions(Path(run.artifacts["predictions"]))[run.name, run.seed]
        predictions, references = zip(*captions.values(), strict=True)
        return bootstrap_bleu(count_ngrams(predictions, [[reference] for reference in references]), seed=seed)

    return Metric("bleu", "BLEU", draw_run, seed)


def recall_metric(seed: int) -> Metric:
    """The metric of retrieval, R@1 from image to text: the share of images whose own caption is ranked first."""

    def draw_run(run: Run) -> np.ndarray:
        (ranks,) = read_columns(Path(run.artifacts["predictions"]), "image_to_text_rank")
        return bootstrap_means(np.array([100.0 * (rank == 1) for rank in ranks]), seed=seed)

    return Metric(RECALL, "R@1", draw_run, seed)


def accuracy_metric(seed: int) -> Metric:
    """The metric of classification: the share of images whose label is predicted."""

    def draw_run(run: Run) -> np.ndarray:
        predicted, labels = read_columns(Path(run.artifacts["predictions"]), "predicted", "label")
        hits = [100.0 * (prediction == label) for prediction, label in zip(predicted, labels, strict=True)]
        return bootstrap_means(np.array(hits), seed=seed)

    return Metric("accuracy", "Accuracy", draw_run, seed)
