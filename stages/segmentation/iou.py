"""Intersection over union (IoU) from an integer confusion matrix."""

from dataclasses import dataclass

import numpy as np

from stages.core.bootstrap import resample_counts
from stages.data.voc import VOID


def confusion(truth: np.ndarray, prediction: np.ndarray, classes: int) -> np.ndarray:
    """Return the pixel counts `(N, classes, classes)` int64 of `N` masks, truth in rows, without void pixels.

    `truth` and `prediction` are uint8 arrays `(N, ...)` of one shape. Raises `ValueError` for a value that is neither
    a class nor, in `truth`, void.
    """
    count = len(truth)
    truth = truth.reshape(count, -1)
    prediction = prediction.reshape(count, -1)
    void = truth == VOID
    for name, invalid in (("truth", (truth >= classes) & ~void), ("prediction", prediction >= classes)):
        if invalid.any():
            raise ValueError(f"{name} holds a class beyond 0..{classes - 1}")
    # Every pixel becomes a cell number, for one `bincount` over all images. Each image has one cell more than its
    # matrix, for void pixels: cheaper than selecting the other pixels.
    cells_per_image = classes * classes + 1
    cells = np.where(void, classes * classes, truth.astype(np.int32) * classes + prediction)
    cells += np.arange(count, dtype=np.int32)[:, None] * cells_per_image
    counts = np.bincount(cells.ravel(), minlength=count * cells_per_image).reshape(count, cells_per_image)
    return counts[:, :-1].reshape(count, classes, classes)


@dataclass(frozen=True)
class Iou:
    """`per_class` in percent, None for a class in neither truth nor prediction; `mean` over the other classes."""

    mean: float
    per_class: tuple[float | None, ...]


def iou(matrix: np.ndarray) -> Iou:
    """Return the IoU of every class and their mean, in percent, from a confusion matrix `(classes, classes)`.

    A class absent from truth and prediction has no IoU and is left out of the mean (PASCAL VOC's measure;
    Everingham et al., 2010). Raises `ValueError` if no pixel was counted.
    """
    class_ious = _class_ious(np.asarray(matrix))
    if np.isnan(class_ious).all():
        raise ValueError("no pixel was counted: every pixel of the truth is void")
    per_class = tuple(None if np.isnan(value) else float(value) for value in class_ious)
    return Iou(float(np.nanmean(class_ious)), per_class)


def mean_iou_draws(matrices: np.ndarray, *, seed: int) -> np.ndarray:
    """Return the mean IoU of bootstrap samples of images, `(draws,)`, from `(images, classes, classes)`.

    They measure the variation of validation images, not that of training.
    """
    images, classes, _ = matrices.shape
    counts = resample_counts(images, seed=seed)  # (draws, images)
    # The sum of the sampled images' matrices, as one product.
    sampled = (counts @ matrices.reshape(images, -1).astype(np.float64)).reshape(-1, classes, classes)
    return np.array([np.nanmean(_class_ious(matrix)) for matrix in sampled])


def _class_ious(matrix: np.ndarray) -> np.ndarray:
    """Return the IoU of every class in percent, NaN for an absent class."""
    intersection = matrix.diagonal().astype(np.float64)
    union = matrix.sum(0) + matrix.sum(1) - matrix.diagonal()
    return 100 * np.divide(intersection, union, out=np.full(len(union), np.nan), where=union > 0)
