"""The share of attention on objects, over a split: means with intervals from resampling whole images."""

import numpy as np

from stages.core.bootstrap import bootstrap_means, confidence_interval, resample_counts


def compute_attention_share(
    mass: np.ndarray, area: np.ndarray, images: np.ndarray, *, seed: int
) -> dict[str, float | int]:
    """Mean attention `mass` on the object and mean object `area`, both in percent, over `count` maps.

    Arguments are per map, `(maps,)`; `images` numbers each map's image. `times` is mass over area: how many times the
    mass of uniform attention. `_low` and `_high` are the ends of 95 % intervals.
    """
    mass_low, mass_high = confidence_interval(bootstrap_means(mass, images, seed=seed))
    # `times` is a ratio of sums, so resample numerator and denominator together: the same seed, the same images.
    counts = resample_counts(int(images.max()) + 1, seed=seed)  # (samples, images)
    mass_sums = counts @ np.bincount(images, mass)
    area_sums = counts @ np.bincount(images, area)
    drawn = area_sums > 0  # a sample may miss every image that has a map
    times_low, times_high = confidence_interval(mass_sums[drawn] / area_sums[drawn])
    return {
        "mass": float(mass.mean()),
        "mass_low": mass_low,
        "mass_high": mass_high,
        "area": float(area.mean()),
        "times": float(mass.sum() / area.sum()),
        "times_low": times_low,
        "times_high": times_high,
        "count": len(mass),
    }
