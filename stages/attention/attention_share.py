"""The share of attention on objects, over a split: means with intervals from resampling whole images."""

from dataclasses import dataclass

import numpy as np

from stages.core.bootstrap import bootstrap_means, confidence_interval, resample_counts


@dataclass(frozen=True)
class AttentionShare:
    """Mean attention `mass` on the object and the object's mean `area`, both in percent, over `count` maps.

    `times` is mass over area: how many times the mass of uniform attention. `_low` and `_high` are 95 % intervals.
    """

    mass: float
    mass_low: float
    mass_high: float
    area: float
    times: float
    times_low: float
    times_high: float
    count: int


def compute_attention_share(mass: np.ndarray, area: np.ndarray, images: np.ndarray, *, seed: int) -> AttentionShare:
    """The share over maps with `mass` and `area` in percent; `images` numbers each map's image (all `(maps,)`)."""
    mass_low, mass_high = confidence_interval(bootstrap_means(mass, images, seed=seed))
    # `times` is a ratio of sums, so resample numerator and denominator together: the same seed, the same images.
    counts = resample_counts(int(images.max()) + 1, seed=seed)  # (samples, images)
    mass_sums = counts @ np.bincount(images, mass)
    area_sums = counts @ np.bincount(images, area)
    drawn = area_sums > 0  # a sample may miss every image that has a map
    times_low, times_high = confidence_interval(mass_sums[drawn] / area_sums[drawn])
    return AttentionShare(
        mass=float(mass.mean()),
        mass_low=mass_low,
        mass_high=mass_high,
        area=float(area.mean()),
        times=float(mass.sum() / area.sum()),
        times_low=times_low,
        times_high=times_high,
        count=len(mass),
    )
