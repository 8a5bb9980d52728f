"""How much of the attention lies on objects, over a split: means with intervals from resampling whole images."""

from dataclasses import dataclass

import numpy as np

from stages.core.bootstrap import bootstrap_means, confidence_interval, resample_counts


@dataclass(frozen=True)
class Share:
    """`mass` on the object, in percent, against the `area` that it covers; `times` is one over the other.

    Each with its 95 % interval; `count` is how many maps they are means of.
    """

    mass: float
    mass_low: float
    mass_high: float
    area: float
    times: float
    times_low: float
    times_high: float
    count: int


def compute_attention_share(mass: np.ndarray, area: np.ndarray, images: np.ndarray, *, seed: int) -> Share:
    """The share of maps with `mass` and `area` in percent, each of image number `images` (all `(maps,)`)."""
    masses, areas = _drawn(mass, images, seed), _drawn(area, images, seed)
    between = confidence_interval(bootstrap_means(mass, images, seed=seed))
    times = confidence_interval(masses[areas > 0] / areas[areas > 0])
    return Share(float(mass.mean()), *between, float(area.mean()), float(mass.sum() / area.sum()), *times, len(mass))


def _drawn(values: np.ndarray, images: np.ndarray, seed: int) -> np.ndarray:
    """Sums of `values` over the images of each draw."""
    return resample_counts(int(images.max()) + 1, seed=seed) @ np.bincount(images, values)
