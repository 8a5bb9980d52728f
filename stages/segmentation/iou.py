"""Intersection over union from one integer confusion matrix."""

from dataclasses import dataclass

import numpy as np

from stages.core.bootstrap import resample_counts
from stages.data.voc import VOID


def confusion(truth: np.ndarray, prediction: np.ndarray, classes: int) -> np.ndarray:
    """Pixel counts `(N, classes, classes)` int64, truth in rows, of `N` masks; pixels of truth 255 are left out.

    `truth` and `prediction` are uint8 arrays `(N, ...)` of one shape. Raises `ValueError` where either holds a value
    that is no class.
    """
    truth, prediction = truth.reshape(len(truth), -1), prediction.reshape(len(prediction), -1)
    void = truth == VOID
    for name, wrong in (("truth", (truth >= classes) & ~void), ("prediction", prediction >= classes)):
        if wrong.any():
            raise ValueError(f"{name} holds a class beyond 0..{classes - 1}")
    # One cell more than the matrix has takes what is void: cheaper than picking the other pixels out.
    cells = np.where(void, classes * classes, truth.astype(np.int32) * classes + prediction)
    cells += np.arange(len(truth), dtype=np.int32)[:, None] * (classes * classes + 1)
    counted = np.bincount(cells.ravel(), minlength=len(truth) * (classes * classes + 1))
    return counted.reshape(len(truth), -1)[:, :-1].reshape(-1, classes, classes)


@dataclass(frozen=True)
class Iou:
    """`per_class` in percent, None for a class in neither truth nor prediction; `mean` over the others."""

    mean: float
    per_class: tuple[float | None, ...]


def iou(matrix: np.ndarray) -> Iou:
    """IoU of every class and their mean, in percent, from a confusion matrix `(classes, classes)`.

    A class absent from truth and prediction has no IoU and is left out of the mean (PASCAL VOC's measure;
    Everingham et al., 2010). Raises `ValueError` where nothing was counted.
    """
    shares = _shares(np.asarray(matrix))
    if np.isnan(shares).all():
        raise ValueError("no pixel was counted: every pixel of the truth is void")
    per_class = tuple(None if np.isnan(share) else float(share) for share in shares)
    return Iou(float(np.nanmean(shares)), per_class)


def mean_iou_draws(matrices: np.ndarray, *, seed: int, draws: int = 1000) -> np.ndarray:
    """Mean IoU of `draws` bootstrap samples of whole images, `(draws,)`, from `matrices` `(images, classes, classes)`.

    The randomness of training is not in them.
    """
    images, flat = len(matrices), matrices.reshape(len(matrices), -1).astype(np.float64)
    drawn = (resample_counts(images, seed=seed, draws=draws) @ flat).reshape(draws, *matrices.shape[1:])
    return np.array([np.nanmean(_shares(matrix)) for matrix in drawn])


def _shares(matrix: np.ndarray) -> np.ndarray:
    """IoU of every class in percent, NaN for an absent one."""
    hits = matrix.diagonal().astype(np.float64)
    union = matrix.sum(0) + matrix.sum(1) - matrix.diagonal()
    return 100 * np.divide(hits, union, out=np.full(len(hits), np.nan), where=union > 0)
