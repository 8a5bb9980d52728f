"""Results: the runs of a name, one per seed, with their final metrics as a DataFrame."""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import pandas as pd

from stages.core.runs import Run, read_run, run_key
from stages.tracking import registration

RunNames = list[tuple[str, int | None]]  # names and seeds of a task's runs


@dataclass(frozen=True)
class Result:
    """A row of a table: runs that differ in their seed only.

    `frame` has one row per run, in the same order, and one column per metric: numbers as the store or the records hold
    them. `run_ids` are MLflow's, None where metrics come from the records.
    """

    runs: tuple[Run, ...]
    frame: pd.DataFrame
    run_ids: tuple[str | None, ...]

    @property
    def name(self) -> str:
        """The name that the runs share, their key in params.yaml."""
        return self.run.name

    @property
    def run(self) -> Run:
        """The run of the first seed, whose curves, masks and captions figures show."""
        return self.runs[0]

    @property
    def run_id(self) -> str | None:
        """The first run's ID in MLflow."""
        return self.run_ids[0]

    @cached_property
    def metrics(self) -> dict[str, float]:
        """Means over the seeds, by metric."""
        return self.frame.mean().dropna().to_dict()

    @property
    def predictions(self) -> Path:
        """The first run's predictions on the validation images (parquet)."""
        return Path(self.run.artifacts["predictions"])


def unique_labels(results: Sequence[Result], describe: Callable[[Result], str]) -> list[str]:
    """The labels of results; where several share a label, their names are added."""
    labels = [describe(result) for result in results]
    counts = Counter(labels)
    return [
        label if counts[label] == 1 else f"{label} ({result.name})"
        for label, result in zip(labels, results, strict=True)
    ]


def load_results(names: dict[str, RunNames]) -> tuple[dict[str, list[Result]], bool]:
    """Results by task, and whether their metrics were read from MLflow, where missing runs are registered first.

    If the store fails, metrics are those of the records.
    """
    runs = {task: [read_run(task, run_key(name, seed)) for name, seed in pairs] for task, pairs in names.items()}
    all_runs = [run for task_runs in runs.values() for run in task_runs]
    stored = registration.register(all_runs)
    metrics = registration.read_records(all_runs) if stored is None else stored
    return {task: group_seeds(task_runs, metrics) for task, task_runs in runs.items()}, stored is not None


def group_seeds(runs: Iterable[Run], metrics: pd.DataFrame) -> list[Result]:
    """One result per name, in order. `metrics` has a row per run, as `registration.register` returns it."""
    groups: dict[str, list[Run]] = {}
    for run in runs:
        groups.setdefault(run.name, []).append(run)
    results = []
    for group in groups.values():
        rows = metrics.loc[[run.identity for run in group]]
        # Columns are those of all tasks; the store has them in no particular order.
        frame = rows.drop(columns="run_id").dropna(axis="columns", how="all").sort_index(axis="columns")
        frame.index = pd.Index([run.key for run in group])
        results.append(Result(tuple(group), frame, tuple(rows["run_id"])))
    return results
