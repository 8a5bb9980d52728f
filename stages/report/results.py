"""Runs as the report reads them: from MLflow where the store can be used, from their records where it cannot."""

from dataclasses import dataclass
from typing import Any

from stages.core import tracking
from stages.core.runs import Run, read_run


@dataclass(frozen=True)
class Result:
    """A run, and its final numbers as the store (or else the record) has them; `run_id` is MLflow's, or None."""

    run: Run
    metrics: dict[str, Any]
    run_id: str | None


def collect(names: dict[str, list[str]]) -> tuple[dict[str, list[Result]], bool]:
    """The results of every task's named runs, and whether their numbers come from the store.

    A run that the store lacks is registered first. Where one cannot be, all numbers come from the records.
    """
    runs = {task: [read_run(task, name) for name in asked] for task, asked in names.items()}
    tracked = tracking.register([run for some in runs.values() for run in some])
    found = {
        task: [Result(run, _typed(run, tracked[run.identity]), tracked[run.identity].run_id) for run in some]
        if tracked
        else [Result(run, run.metrics, None) for run in some]
        for task, some in runs.items()
    }
    return found, bool(tracked)


def _typed(run: Run, tracked: tracking.Tracked) -> dict[str, Any]:
    """MLflow's numbers in the record's types: it knows floats alone."""
    return {key: type(run.metrics[key])(value) for key, value in tracked.metrics.items() if key in run.metrics}
