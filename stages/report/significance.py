"""Bootstrap draws of a table's number over images and seeds: intervals, and differences of two rows."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import numpy as np

from stages.core.bootstrap import confidence_interval
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
    seed: int  # of the resampling of seeds
    # Draws by task and key of the run: a row may be in several comparisons, and some bootstraps take seconds.
    _draws_by_run: dict[tuple[str, str], np.ndarray] = field(default_factory=dict, init=False, repr=False)

    def draws(self, result: Result) -> np.ndarray:
        """Draws `(DRAWS,)` of the mean over the result's seeds, with both images and seeds resampled.

        With S > 1 seeds, every draw is the mean over S - 1 seeds, chosen from the S with replacement: resampling S of
        them would understate the variance of their mean by the factor (S - 1) / S (the rescaled bootstrap; Rao and Wu,
        1988). Seeds are resampled independently for every result, as the randomness of two trainings is.

        The variance of randomness that differs by both image and seed, such as that of sampled words, is counted three
        times: intervals are too wide where it dominates (Owen, 2007, on bootstraps of two crossed factors). They are
        too narrow where few seeds vary far more than images: in simulations, three such seeds cover 85 %, five 92 %.
        """
        run_draws = np.stack([self._run_draws(run) for run in result.runs])  # (S, DRAWS)
        seeds, draws = run_draws.shape
        if seeds == 1:
            return run_draws[0]
        rng = np.random.default_rng([self.seed, *f"{result.run.task}/{result.name}".encode()])
        counts = rng.multinomial(seeds - 1, np.full(seeds, 1 / seeds), size=draws)  # (DRAWS, S)
        return (counts.T * run_draws).sum(0) / (seeds - 1)

    def interval(self, result: Result) -> tuple[float, float]:
        """The 95 % interval of the result's metric: over images, and over seeds if there are several."""
        if len(result.runs) == 1:
            return result.metrics[f"{self.key}_low"], result.metrics[f"{self.key}_high"]
        return confidence_interval(self.draws(result))

    def spread(self, result: Result) -> float | None:
        """The standard deviation over the result's seeds, as a sample of all seeds; None with one seed."""
        return None if len(result.runs) == 1 else float(result.frame[self.key].std(ddof=1))

    def _run_draws(self, run: Run) -> np.ndarray:
        key = (run.task, run.key)
        if key not in self._draws_by_run:
            self._draws_by_run[key] = self.draw_run(run)
        return self._draws_by_run[key]


@dataclass(frozen=True)
class Margin:
    """How far one row of a table is above another, with the 95 % interval of that difference."""

    left: Result
    right: Result
    difference: float
    low: float
    high: float

    @property
    def significant(self) -> bool:
        """Whether the interval excludes 0."""
        return not self.low <= 0 <= self.high


def compare(left: Result, right: Result, metric: Metric) -> Margin:
    """How far `left` is above `right`; negative if it is below."""
    low, high = confidence_interval(metric.draws(left) - metric.draws(right))
    return Margin(left, right, left.metrics[metric.key] - right.metrics[metric.key], low, high)


def star_margin(results: Iterable[Result], metric: Metric) -> Margin | None:
    """The margin of a table's best row, which gets the star; None for a table with fewer than two rows."""
    ranked = sorted(results, key=lambda result: result.metrics[metric.key], reverse=True)
    return compare(ranked[0], ranked[1], metric) if len(ranked) > 1 else None
