"""Differences of table rows, with the validation images and the seeds as sources of randomness."""

import numpy as np
import pandas as pd
import pytest
from scipy.stats import binom

from stages.core.bootstrap import DRAWS, bootstrap_means, confidence_interval, resample_counts
from stages.core.runs import Run
from stages.report.results import Result
from stages.report.significance import Metric, star_margin

IMAGES = 200
WEIGHTS = resample_counts(IMAGES, seed=0) / IMAGES  # (DRAWS, IMAGES)


def build_result(name, scores):
    """A result with one run per row of `scores` `(seeds, images)`."""
    seeds = [None] if len(scores) == 1 else range(1, len(scores) + 1)
    runs = tuple(
        Run("task", name, "stage", {}, {"score": float(row.mean())}, seed=seed, details={"scores": row})
        for row, seed in zip(scores, seeds, strict=True)
    )
    return Result(runs, pd.DataFrame([run.metrics for run in runs]), (None,) * len(runs))


def build_metric():
    return Metric("score", "Score", lambda run: WEIGHTS @ run.details["scores"], seed=1)


def difference_interval(left, right):
    metric = build_metric()
    return confidence_interval(metric.draws(left) - metric.draws(right))


def test_with_one_seed_a_difference_is_the_paired_bootstrap_over_images():
    rng = np.random.default_rng(1)
    easiness = rng.normal(0, 5, IMAGES)
    left, right = easiness + rng.normal(0, 1, (2, 1, IMAGES))
    metric = build_metric()
    draws = metric.draws(build_result("left", left)) - metric.draws(build_result("right", right))
    assert np.allclose(draws, bootstrap_means((left - right)[0], seed=0))
    assert draws.std() < 0.5 * metric.draws(build_result("left", left)).std()  # what images share cancels out


def test_seeds_that_agree_add_no_variance():
    scores = np.random.default_rng(2).normal(size=(1, IMAGES))
    metric = build_metric()
    repeated = metric.draws(build_result("repeated", np.repeat(scores, 5, axis=0)))
    assert np.allclose(repeated, metric.draws(build_result("single", scores)))


@pytest.mark.parametrize("seeds", [2, 3, 5, 10])
def test_the_variance_over_seeds_is_that_of_their_mean(seeds):
    values = np.random.default_rng(seeds).normal(size=seeds)
    draws = build_metric().draws(build_result("row", np.repeat(values[:, None], IMAGES, axis=1)))
    # Resampling all S seeds, not S - 1, would give (S - 1) / S of it.
    assert np.isclose(draws.var(), values.var(ddof=1) / seeds, rtol=0.15)
    assert np.isclose(draws.mean(), values.mean(), atol=4 * draws.std() / np.sqrt(DRAWS))


def test_seeds_are_resampled_independently_for_every_result_and_equally_in_every_call():
    scores = np.random.default_rng(3).normal(size=(5, 1)) + np.zeros((5, IMAGES))
    first, again, second = (build_metric().draws(build_result(name, scores)) for name in ("first", "first", "second"))
    assert np.array_equal(first, again)
    assert abs(np.corrcoef(first, second)[0, 1]) < 0.15


@pytest.mark.parametrize("seed_share", [0.0, 0.3, 1.0])
def test_intervals_cover_the_true_difference_in_95_of_100_experiments(seed_share):
    """`seed_share` is the ratio of the standard errors over seeds and over images."""
    rng = np.random.default_rng(4)
    experiments, seeds, true_difference = 600, 5, 0.3
    seed_noise = seed_share * np.sqrt(seeds / IMAGES)
    covered = 0
    for _ in range(experiments):
        # Images differ in their mean, which both rows share, and in what is particular to each row.
        shared = rng.normal(0, 2, IMAGES)
        scores = shared + rng.normal(0, 1, (2, 1, IMAGES)) + rng.normal(0, seed_noise, (2, seeds, 1))
        low, high = difference_interval(
            build_result("left", scores[0] + true_difference), build_result("right", scores[1])
        )
        covered += low <= true_difference <= high
    # The percentile interval of 200 images and 5 seeds is a little too narrow; hence 94 %, and 1 in 1000 at each end.
    lowest, highest = binom.ppf([0.001, 0.999], experiments, [0.94, 0.95])
    assert lowest <= covered <= highest


def test_an_interval_is_the_runs_own_with_one_seed_and_of_the_draws_with_several():
    scores = np.random.default_rng(5).normal(size=(3, IMAGES))
    metric = build_metric()
    several = build_result("several", scores)
    assert metric.interval(several) == confidence_interval(metric.draws(several))
    run = Run("task", "single", "stage", {}, {"score": 1.0, "score_low": 0.25, "score_high": 1.5})
    assert metric.interval(Result((run,), pd.DataFrame([run.metrics]), (None,))) == (0.25, 1.5)


def test_spread_is_the_sample_standard_deviation_over_seeds():
    metric = build_metric()
    several = build_result("several", np.array([[1.0], [2.0], [6.0]]))
    assert np.isclose(metric.spread(several), np.sqrt(7))
    assert metric.spread(build_result("single", np.array([[1.0]]))) is None


def test_a_star_has_a_margin_over_the_runner_up():
    rng = np.random.default_rng(6)
    base = rng.normal(size=(1, IMAGES))
    worst, middle = build_result("worst", base - 9), build_result("middle", base)
    close = build_result("close", base + 0.01 + rng.normal(0, 1, (1, IMAGES)) * 0.5)
    best = build_result("best", base + 5 + rng.normal(0, 1, (1, IMAGES)) * 0.1)
    metric = build_metric()
    margin = star_margin([worst, best, middle], metric)
    assert (margin.left, margin.right) == (best, middle)
    assert margin.low < margin.difference < margin.high
    assert margin.significant
    assert not star_margin([middle, close], metric).significant
    assert star_margin([best], metric) is None
    assert star_margin([], metric) is None


def test_no_run_is_bootstrapped_twice():
    calls = []

    def draw_run(run):
        calls.append(run.key)
        return WEIGHTS @ run.details["scores"]

    metric = Metric("score", "Score", draw_run, seed=1)
    results = [build_result(name, np.random.default_rng(7).normal(size=(3, IMAGES))) for name in ("first", "second")]
    star_margin(results, metric)
    metric.interval(results[0])
    assert sorted(calls) == [f"{name}-seed{seed}" for name in ("first", "second") for seed in (1, 2, 3)]
