"""Intervals from resampling whole images: what other validation images would have done to a number."""

import numpy as np


def resample_counts(images: int, *, seed: int, draws: int = 1000) -> np.ndarray:
    """How often each of `images` is in each bootstrap sample: `(draws, images)`.

    Two runs' draws with one seed are of the same images, so that their differences are paired.
    """
    return np.random.default_rng(seed).multinomial(images, np.full(images, 1 / images), size=draws)


def bootstrap_means(values: np.ndarray, images: np.ndarray | None = None, *, seed: int) -> np.ndarray:
    """Bootstrap draws of the mean of `values` `(N,)`, one an image, or each of the image that `images` numbers."""
    images = np.arange(len(values)) if images is None else images
    drawn = resample_counts(int(images.max()) + 1, seed=seed)
    sums, counts = drawn @ np.bincount(images, values), drawn @ np.bincount(images)
    return sums[counts > 0] / counts[counts > 0]  # a draw may have missed all images that have one


def confidence_interval(draws: np.ndarray) -> tuple[float, float]:
    """The middle 95 % of bootstrap draws."""
    low, high = np.percentile(draws, [2.5, 97.5])
    return float(low), float(high)
