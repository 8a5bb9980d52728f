"""Bootstrap draws of a table's number over images and seeds: intervals, and differences of two rows."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from stages.core.runs import Run
from stages.report.results import Result


@dataclass(frozen=True)
class Metric:
    """A number that a table prints: its name in the runs' metrics, and its bootstrap over images.

    `draw_run` returns `(DRAWS,)` values of one run's metric, each for another sample of the validation images. All runs
    of a task use the same samples, so that differences of two runs are paired image by image.
    """

    key: str
    label: str
    draw_run: Callable[[Run], np.ndarray]

    def draws(self, result: Result) -> np.ndarray:
        """Draws `(DRAWS,)` of the mean over the result's seeds, with both images and seeds resampled."""
        raise NotImplementedError

    def interval(self, result: Result) -> tuple[float, float]:
        """The 95 % interval of the result's metric: over images, and over seeds if there are several."""
        raise NotImplementedError
