"""Bootstrap confidence intervals over images: how much a metric would vary with other validation images."""

from functools import lru_cache

import numpy as np

DRAWS = 1000  # 95 % percentile intervals vary little between seeds at this number


@lru_cache(maxsize=1)  # the runs of a task share the samples
def resample_counts(images: int, *, seed: int) -> np.ndarray:
    """How often each of `images` occurs in each bootstrap sample: `(draws, images)`.

    The same seed gives the same samples, so the difference of two runs is a paired comparison.
    """
    # Drawing n images with replacement is one multinomial draw of their counts.
    counts = np.random.default_rng(seed).multinomial(images, np.full(images, 1 / images), size=DRAWS)
    counts.flags.writeable = False
    return counts


def bootstrap_means(values: np.ndarray, images: np.ndarray | None = None, *, seed: int) -> np.ndarray:
    """Bootstrap draws of the mean of `values` `(N,)`, resampled by image: `(draws,)`.

    `images` `(N,)` is the image index of each value; by default, there is one value per image.
    """
    images = np.arange(len(values)) if images is None else images
    counts = resample_counts(int(images.max()) + 1, seed=seed)
    totals = counts @ np.bincount(images, values)  # per image its sum of values, then per draw
    sizes = counts @ np.bincount(images)
    # An index may have no value (its image was left out). Draws of such images only have no mean.
    return totals[sizes > 0] / sizes[sizes > 0]


def confidence_interval(draws: np.ndarray) -> tuple[float, float]:
    """The 95 % interval of bootstrap draws (percentile method)."""
    low, high = np.percentile(draws, [2.5, 97.5])
    return float(low), float(high)
