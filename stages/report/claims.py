"""Statements of the original about the difference of two runs, checked against the difference here."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from stages.core.bootstrap import bootstrap_means, confidence_interval
from stages.report.results import Result


@dataclass(frozen=True)
class Claim:
    """What the original says of run `first` minus run `second`, and the sign of that difference.

    `original` is the difference in the original's words, for a claim that it makes without two numbers.
    """

    text: str
    first: str
    second: str
    sign: int
    original: str | None = None

    def line(self, original: str, difference: float, draws: np.ndarray) -> str:
        """The claim as a list item; `draws` are bootstrap draws of `difference`, paired image by image.

        The verdict is about the direction only; the numbers show the size of the difference.
        """
        low, high = confidence_interval(draws)
        if low <= 0 <= high:
            verdict = "not significant (95 % CI includes 0)"
        else:
            verdict = "same direction" if difference * self.sign > 0 else "opposite direction"
        return (
            f"- *{self.text}* (original: {original}): {difference:+.2f} here, "
            f"95 % CI {low:+.2f} to {high:+.2f}: {verdict}."
        )


def mean_differences(values: Callable[[Result], np.ndarray], first: Result, second: Result, *, seed: int) -> np.ndarray:
    """Bootstrap draws of the difference of two runs' mean `values`, which have one number per image."""
    return bootstrap_means(values(first) - values(second), seed=seed)


def claim_lines(
    claims: Iterable[Claim],
    results: list[Result],
    originals: Mapping[str, Any],
    metric: str,
    draw_differences: Callable[[Result, Result], np.ndarray],
) -> list[str]:
    """The claims that can be checked, as list items in markdown.

    `originals` maps runs to the original's numbers, or None for a run with other settings than the original's: claims
    about it are left out. `draw_differences` returns bootstrap draws of the metric's difference between two runs.
    """
    results_by_name = {result.run.name: result for result in results}
    lines = []
    for claim in claims:
        first_original = originals.get(claim.first)
        second_original = originals.get(claim.second)
        if first_original is None or second_original is None:
            continue
        first = results_by_name[claim.first]
        second = results_by_name[claim.second]
        difference = first.metrics[metric] - second.metrics[metric]
        original = claim.original or f"{first_original - second_original:+.2f}"
        lines.append(claim.line(original, difference, draw_differences(first, second)))
    return lines
