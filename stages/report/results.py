"""Runs with their final metrics, read from MLflow if its store works, else from the run records."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stages.core import tracking
from stages.core.runs import Run, read_run


@dataclass(frozen=True)
class Result:
    """A run and its final metrics, as read from the store or the record; `run_id` is MLflow's, or None."""

    run: Run
    metrics: dict[str, Any]
    run_id: str | None = None

    @property
    def predictions(self) -> Path:
        """The run's predictions on the validation images (parquet)."""
        return Path(self.run.artifacts["predictions"])


def load_results(names: dict[str, list[str]]) -> tuple[dict[str, list[Result]], bool]:
    """The results of the named runs, by task, and whether their metrics come from the store.

    Runs that the store lacks are registered first. If that fails for any run, all metrics come from the records.
    """
    runs = {task: [read_run(task, name) for name in task_names] for task, task_names in names.items()}
    tracked = tracking.register([run for task_runs in runs.values() for run in task_runs])
    results = {task: [_result(run, tracked.get(run.identity)) for run in task_runs] for task, task_runs in runs.items()}
    return results, bool(tracked)


def _result(run: Run, tracked: tracking.Tracked | None) -> Result:
    if tracked is None:
        return Result(run, run.metrics)
    # MLflow knows only floats: give each metric the type that it has in the record.
    metrics = {key: type(run.metrics[key])(value) for key, value in tracked.metrics.items() if key in run.metrics}
    return Result(run, metrics, tracked.run_id)
