"""Whether the original's conclusions (`statements.py`) hold here, decided by the runs, or why that is not checked."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import sqrt
from typing import Literal

import numpy as np
from scipy.stats import binomtest

from stages.core.bootstrap import confidence_interval
from stages.report.original_settings import changed_settings, deviations, original_number
from stages.report.results import Result
from stages.report.section import Inputs
from stages.report.significance import Metric
from stages.report.statements import (
    HIGHER,
    LOWER,
    NOT_LOWER,
    STATEMENTS,
    BestRow,
    Claim,
    Comparison,
    Direction,
    EffectComparison,
    EpochAgainst,
    MeasuredAgainst,
    NotMeasured,
    OriginalLevel,
    Statement,
)

Outcome = Literal["holds", "does not hold", "not significant here", "not checked"]
NORMAL_95 = 1.96  # standard errors to either side of a 95 % interval
NOT_SIGNIFICANT: Outcome = "not significant here"


@dataclass(frozen=True)
class Measurement:
    """A value, the reference that it is compared with (0 for a difference), and the direction that the original claims.

    `interval` is the value's 95 % interval; a property of weights alone has none. `rows` are those that were compared;
    `note` gives measurements behind the value.
    """

    rows: tuple[Result, ...]
    compared: str
    metric: str
    value: float
    interval: tuple[float, float] | None
    direction: Direction
    reference: float = 0.0
    original: str | None = None
    note: str | None = None

    @property
    def outcome(self) -> Outcome:
        """Whether the value is on the claimed side of the reference; not significant if its interval includes it.

        "Not higher" and "not lower" hold unless the interval is all on the other side.
        """
        low, high = self.interval or (self.value, self.value)
        is_higher = low > self.reference
        is_lower = high < self.reference
        match self.direction:
            case ">":
                return "holds" if is_higher else "does not hold" if is_lower or not self.interval else NOT_SIGNIFICANT
            case "<":
                return "holds" if is_lower else "does not hold" if is_higher or not self.interval else NOT_SIGNIFICANT
            case "≤":
                return "does not hold" if is_higher else "holds"
            case "≥":
                return "does not hold" if is_lower else "holds"


@dataclass(frozen=True)
class Verdict:
    """One comparison of a sentence, and how it comes out. Only a comparison that was not checked has no measurement.

    `explanation` says why a comparison was not checked, or gives measurements that belong to one that does not hold.
    """

    task: str
    sentence: str
    compared: str
    outcome: Outcome
    measurement: Measurement | None = None
    explanation: str | None = None

    @property
    def metric(self) -> str:
        """The label of the compared metric."""
        return self.measurement.metric if self.measurement else "-"

    @property
    def here(self) -> str:
        """The value as text: a difference with its sign, any other value with its reference."""
        if not self.measurement:
            return "-"
        value, reference = self.measurement.value, self.measurement.reference
        return f"{value:+.2f}" if reference == 0 else f"{value:.2f} (against {reference:.2f})"

    @property
    def interval(self) -> str:
        """The value's 95 % interval as text."""
        if not self.measurement or not self.measurement.interval:
            return "-"
        low, high = self.measurement.interval
        return f"{low:+.2f} to {high:+.2f}" if self.measurement.reference == 0 else f"{low:.2f} to {high:.2f}"

    @property
    def original(self) -> str | None:
        """The original's difference, if it prints one."""
        return self.measurement.original if self.measurement else None


class NotCheckedError(Exception):
    """A comparison that the runs cannot decide; the message says why."""


def evaluate_claims(inputs: Inputs, metrics: Mapping[str, Metric]) -> list[Verdict]:
    """A verdict on every comparison of every sentence, in the sentences' order."""
    evaluator = Evaluator(inputs, metrics)
    return [evaluator.evaluate(statement, claim) for statement in STATEMENTS for claim in statement.claims]


@dataclass(frozen=True)
class Evaluator:
    """Measures comparisons in the rows of `inputs` with the tasks' `metrics`."""

    inputs: Inputs
    metrics: Mapping[str, Metric]

    def evaluate(self, statement: Statement, claim: Claim) -> Verdict:
        """The verdict on one comparison of a sentence."""
        try:
            measurement = self.measure(claim)
        except NotCheckedError as error:
            return Verdict(statement.section, statement.sentence, describe(claim), "not checked", None, str(error))
        explanation = None if measurement.outcome == "holds" else _explain(claim, measurement)
        return Verdict(
            statement.section,
            statement.sentence,
            measurement.compared,
            measurement.outcome,
            measurement,
            explanation,
        )

    def measure(self, claim: Claim) -> Measurement:
        """Measure one comparison. Raises `NotCheckedError` if the runs cannot decide it."""
        match claim:
            case Comparison():
                return self._compare_rows(claim)
            case EffectComparison():
                return self._compare_effects(claim)
            case MeasuredAgainst():
                return self._measure_against(claim)
            case OriginalLevel():
                return self._compare_with_original(claim)
            case EpochAgainst():
                return self._compare_epoch(claim)
            case NotMeasured():
                raise NotCheckedError(claim.reason)

    def _compare_rows(self, claim: Comparison) -> Measurement:
        left = self._row(claim.left)
        metric = self.metrics[left.run.task]
        right_rows = self._candidates(claim.right) if isinstance(claim.right, BestRow) else [self._row(claim.right)]
        right = max(right_rows, key=lambda row: row.metrics[metric.key])
        # The original's best row may be another than ours.
        left_original = _original_number(left)
        right_originals = [_original_number(row) for row in right_rows]
        original = claim.original
        if original is None and left_original is not None and None not in right_originals:
            original = f"{left_original - max(number for number in right_originals if number is not None):+.2f}"
        return Measurement(
            rows=(left, right),
            compared=describe(claim, right.name),
            metric=metric.label,
            value=left.metrics[metric.key] - right.metrics[metric.key],
            interval=confidence_interval(metric.draws(left) - metric.draws(right)),
            direction=claim.direction,
            original=original,
            note=_describe_values((left, right), metric),
        )

    def _compare_effects(self, claim: EffectComparison) -> Measurement:
        rows = tuple(self._row(row) for row in (*claim.small, *claim.large))
        metric = self.metrics[rows[0].run.task]
        small_from, small_to, large_from, large_to = rows
        small = small_to.metrics[metric.key] - small_from.metrics[metric.key]
        large = large_to.metrics[metric.key] - large_from.metrics[metric.key]
        # The draws of an effect have the sign of the measured one: the absolute value of every draw would take the
        # noise of a small effect for its size.
        small_draws = np.sign(small) * (metric.draws(small_to) - metric.draws(small_from))
        large_draws = np.sign(large) * (metric.draws(large_to) - metric.draws(large_from))
        originals = [number for row in rows if (number := _original_number(row)) is not None]
        original = None
        if len(originals) == len(rows):
            original_small = abs(originals[1] - originals[0])
            original_large = abs(originals[3] - originals[2])
            original = f"{original_small - original_large:+.2f}"
        return Measurement(
            rows=rows,
            compared=describe(claim),
            metric=f"{metric.label}, sizes of the changes",
            value=abs(small) - abs(large),
            interval=confidence_interval(small_draws - large_draws),
            direction=LOWER,
            original=original,
            note=f"The changes are {small:+.2f} ({claim.small_label}) and {large:+.2f} ({claim.large_label}).",
        )

    def _measure_against(self, claim: MeasuredAgainst) -> Measurement:
        row = self._row(claim.row)
        value = self._recorded(row, claim.metric)
        reference = self._recorded(row, claim.reference) if isinstance(claim.reference, str) else claim.reference
        interval_key = claim.metric
        if claim.difference:
            value -= reference
            reference = 0.0
            interval_key = claim.difference
        return Measurement(
            rows=(row,),
            compared=describe(claim, row.name),
            metric=claim.label,
            value=value,
            interval=self._recorded_interval(row, interval_key),
            direction=claim.direction,
            reference=reference,
        )

    def _compare_with_original(self, claim: OriginalLevel) -> Measurement:
        row = self._row(claim.row)
        if deviations(row.run):
            raise NotCheckedError(f"not the original's data and model: {', '.join(deviations(row.run))}")
        metric = self.metrics[row.run.task]
        number = _original_number(row)
        assert number is not None  # a row with the original's settings, which has a number
        return Measurement(
            rows=(row,),
            compared=describe(claim, row.name),
            metric=metric.label,
            value=row.metrics[metric.key],
            interval=metric.interval(row),
            direction=NOT_LOWER,
            reference=number,
        )

    def _compare_epoch(self, claim: EpochAgainst) -> Measurement:
        row = self._row(claim.row)
        best = row.metrics["best_accuracy"] / 100
        last = row.metrics["accuracy"] / 100
        images = round(row.metrics["images"])
        reference = 0.0
        if claim.last:
            value = last - best
            error = NORMAL_95 * sqrt((best * (1 - best) + last * (1 - last)) / images)
            low = value - error
            high = value + error
        else:
            value = best
            reference = 100 / len(row.run.details["confusion"])
            interval = binomtest(round(best * images), images).proportion_ci(0.95, method="wilson")
            low = interval.low
            high = interval.high
        return Measurement(
            rows=(row,),
            compared=describe(claim),
            metric=self.metrics[row.run.task].label,
            value=100 * value,
            interval=(100 * low, 100 * high),
            direction=LOWER if claim.last else HIGHER,
            reference=reference,
        )

    def _row(self, name: str) -> Result:
        """The row `task/run`, or the first row of `task`. Raises `NotCheckedError` if it cannot be compared."""
        task, _, run = name.partition("/")
        if task in self.inputs.skipped:
            raise NotCheckedError(f"left out: {self.inputs.skipped[task]}")
        matching = [result for result in self.inputs.results.get(task, []) if run in ("", result.name)]
        if not matching:
            raise NotCheckedError(f"`{run or task}` is not among the runs")
        changed = changed_settings(matching[0], self.inputs.experiment)
        if changed:
            settings = ", ".join(changed)
            raise NotCheckedError(f"`{matching[0].name}` has other settings than the original's: {settings}")
        return matching[0]

    def _candidates(self, best: BestRow) -> list[Result]:
        """The rows that may be the best. Raises `NotCheckedError` if none can be compared."""
        results = [result for task in best.tasks for result in self.inputs.results.get(task, [])]
        experiment = self.inputs.experiment
        candidates = [row for row in results if best.matches(row) and not changed_settings(row, experiment)]
        if not candidates:
            raise NotCheckedError(f"{best.label}: none with the original's settings is among the runs")
        return candidates

    def _recorded(self, row: Result, key: str) -> float:
        """A metric of the row. Raises `NotCheckedError` if its run could not measure it."""
        if key not in row.metrics:
            raise NotCheckedError(f"`{row.name}` of `{row.run.task}` has measured no `{key}`")
        return row.metrics[key]

    def _recorded_interval(self, row: Result, key: str) -> tuple[float, float] | None:
        """The 95 % interval of a metric of the row; None for a metric without."""
        metric = self.metrics.get(row.run.task)
        if metric and metric.key == key:
            return metric.interval(row)
        if f"{key}_low" not in row.metrics:
            return None
        return row.metrics[f"{key}_low"], row.metrics[f"{key}_high"]


def describe(claim: Claim, name: str | None = None) -> str:
    """What a claim compares, such as "`transformer` > `linear`". `name` is that of a row that depends on the runs."""
    match claim:
        case Comparison(left, right, direction):
            right_label = f"`{name or _run_name(right)}`" if isinstance(right, str) else right.label
            if isinstance(right, BestRow) and name:
                right_label = f"{right.label}, `{name}`"
            return f"`{_run_name(left)}` {direction} {right_label}"
        case EffectComparison():
            small, large = (" to ".join(f"`{_run_name(row)}`" for row in rows) for rows in (claim.small, claim.large))
            return f"{claim.small_label}, {small} < {claim.large_label}, {large}"
        case MeasuredAgainst():
            return f"`{name or _run_name(claim.row)}` {claim.direction} {claim.reference_label}"
        case OriginalLevel():
            return f"`{_run_name(claim.row)}` {NOT_LOWER} the original"
        case EpochAgainst(row, last):
            return (
                f"`{_run_name(row)}`, last epoch < best epoch" if last else f"`{_run_name(row)}`, best epoch > chance"
            )
        case NotMeasured():
            return claim.compared


def _run_name(row: str) -> str:
    return row.rpartition("/")[2]


def _explain(claim: Claim, measurement: Measurement) -> str:
    """Measurements that belong to a comparison that does not hold, in a sentence or two."""
    default = f"{measurement.metric} is {measurement.value:.2f}, the reference {measurement.reference:.2f}."
    measured = None
    match claim:
        case Comparison() | MeasuredAgainst() | EpochAgainst() if claim.explain:
            measured = claim.explain(*measurement.rows)
    return " ".join(text for text in (measured, measurement.note) if text) or default


def _describe_values(rows: Iterable[Result], metric: Metric) -> str:
    """The rows' values of the metric, with the standard deviation over their seeds."""
    texts = []
    for row in rows:
        spread = metric.spread(row)
        deviation = "" if spread is None else f" ± {spread:.2f} over {len(row.runs)} seeds"
        texts.append(f"{row.metrics[metric.key]:.2f}{deviation} (`{row.name}`)")
    return f"{metric.label} is {' and '.join(texts)}."


def _original_number(row: Result) -> float | None:
    """The original's number of a row; None for words such as "over 94", and for a row that its tables do not have."""
    number = original_number(row.run.task, row.name)
    return None if isinstance(number, str) else number
