"""Intervals from resampling whole images: what other validation images would have done to a number."""

import numpy as np


def weights(images: int, *, seed: int, draws: int = 1000) -> np.ndarray:
    """How often each of `images` is in each bootstrap sample: `(draws, images)`.

    Two runs' draws with one seed are of the same images, so that their differences are paired.
    """
    return np.random.default_rng(seed).multinomial(images, np.full(images, 1 / images), size=draws)


def interval(draws: np.ndarray) -> tuple[float, float]:
    """The middle 95 % of bootstrap draws."""
    low, high = np.percentile(draws, [2.5, 97.5])
    return float(low), float(high)
