"""Intersection over union from one integer confusion matrix."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

VOID = 255


def confusion(truth: Tensor, prediction: Tensor, classes: int) -> Tensor:
    """Pixel counts `(N, classes, classes)` int64, truth in rows, of `N` masks; pixels of truth 255 are left out.

    `truth` and `prediction` are integer tensors `(N, ...)` of one shape. Raises `ValueError` where either holds a
    value that is no class.
    """
    truth, prediction = truth.flatten(1).long(), prediction.flatten(1).long()
    kept = truth != VOID
    for name, values in (("truth", truth[kept]), ("prediction", prediction[kept])):
        if values.numel() and not (0 <= values.min() and values.max() < classes):
            raise ValueError(f"{name} holds class {int(values.max())}; allowed 0..{classes - 1}")
    image = torch.arange(len(truth), device=truth.device).unsqueeze(1).expand_as(truth)
    cells = (image * classes + truth) * classes + prediction
    return torch.bincount(cells[kept], minlength=len(truth) * classes * classes).view(-1, classes, classes)


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


def mean_iou_interval(matrices: np.ndarray, *, seed: int, draws: int = 1000) -> tuple[float, float]:
    """A 95 % interval of the mean IoU over the choice of images: percentiles of a bootstrap of whole images.

    `matrices` is `(images, classes, classes)`. The heads' own randomness is not in it.
    """
    images = len(matrices)
    flat = matrices.reshape(images, -1).astype(np.float64)
    weights = np.random.default_rng(seed).multinomial(images, np.full(images, 1 / images), size=draws)
    drawn = (weights @ flat).reshape(draws, *matrices.shape[1:])
    with np.errstate(invalid="ignore"):
        means = np.nanmean([_shares(matrix) for matrix in drawn], axis=1)
    low, high = np.percentile(means, [2.5, 97.5])
    return float(low), float(high)


def _shares(matrix: np.ndarray) -> np.ndarray:
    """IoU of every class in percent, NaN for an absent one."""
    hits = matrix.diagonal().astype(np.float64)
    union = matrix.sum(0) + matrix.sum(1) - matrix.diagonal()
    return 100 * np.divide(hits, union, out=np.full(len(hits), np.nan), where=union > 0)
