"""Runs in MLflow, registered from their records, each once. A failing store never costs a result.

The report stage registers all runs that it shows and that were not recorded live: those from DVC's cache, and those of
stages without a training. `python -m stages.tracking` (and `make ui`) registers every record in `reports/runs`. What
the report adds to its runs is in `report_runs.py`.
"""

from collections import Counter

import pandas as pd
from mlflow import MlflowClient

from stages.core.messages import join_names
from stages.core.runs import Run
from stages.core.stage import read_timings
from stages.tracking.abandoned import mark_abandoned
from stages.tracking.content import (
    EPOCH,
    IDENTITY,
    close_run,
    epoch_metrics,
    failed_on_error,
    log_metrics,
    milliseconds,
    open_run,
)
from stages.tracking.store import connect, errors_as_warning, experiment_id, find_finished, id_query, search_runs

METRIC_COLUMN = "metrics."  # starts the columns of metrics in MLflow's DataFrame of runs


def register(runs: list[Run]) -> pd.DataFrame | None:
    """Register every run that the store lacks; return all of them as the store holds them, or None if it fails.

    The DataFrame has one row per run, indexed by the run's identity: the column `run_id`, then final metrics by name,
    NaN where a run has no such metric. A run is in the store if a finished MLflow run has its identity; if its metrics
    are not the record's, somebody has changed them, and it is registered anew. Records hold no durations: a stage's
    duration on this machine is divided evenly among its runs.
    """
    with errors_as_warning(f"{join_names([run.name for run in runs], limit=1)} not registered"):
        client = connect()
        durations = _durations(runs)
        experiments = {task: experiment_id(client, task) for task in dict.fromkeys(run.task for run in runs)}
        mark_abandoned(client, list(experiments.values()))
        run_ids = {}
        for run in runs:
            finished = find_finished(client, experiments[run.task], IDENTITY, run.identity)
            run_ids[run.identity] = finished.info.run_id if finished else _create_run(client, run, durations[run.stage])
        stored = _read_runs(list(run_ids.values()))
        changed = [run for run in runs if not _equals_record(stored.loc[run.identity], run)]
        for run in changed:
            run_id = run_ids[run.identity]
            print(f"MLflow run {run_id}: its metrics differ from {run.path}; it is deleted and registered anew")
            client.delete_run(run_id)
            run_ids[run.identity] = _create_run(client, run, durations[run.stage])
        stored = _read_runs(list(run_ids.values())) if changed else stored
        return stored.loc[list(run_ids)]
    return None


def read_records(runs: list[Run]) -> pd.DataFrame:
    """The runs' metrics as their records hold them, in the form in which `register` returns them; `run_id` is None."""
    frame = pd.DataFrame([run.metrics for run in runs], index=[run.identity for run in runs], dtype=float)
    frame.insert(0, "run_id", None)
    return frame


def _equals_record(stored: pd.Series, run: Run) -> bool:
    """Whether the store's final metrics of a run are those of its record."""
    return stored.drop("run_id").dropna().to_dict() == {key: float(value) for key, value in run.metrics.items()}


def _durations(runs: list[Run]) -> dict[str, float]:
    """Seconds per run of each stage; 0 for stages that ran elsewhere."""
    timings = read_timings()
    counts = Counter(run.stage for run in runs)
    return {stage: timings.get(stage, {}).get("seconds", 0.0) / count for stage, count in counts.items()}


def _create_run(client: MlflowClient, run: Run, seconds: float) -> str:
    now = milliseconds()
    run_id = open_run(client, run, now - int(1000 * seconds))
    with failed_on_error(client, run_id):
        log_metrics(client, run_id, [metric for row in run.history for metric in epoch_metrics(row, now)])
        close_run(client, run_id, run)
    return run_id


def _read_runs(run_ids: list[str]) -> pd.DataFrame:
    """Final metrics of these runs in the store, as `register` returns them."""
    runs = search_runs(id_query(run_ids)).set_index(f"tags.{IDENTITY}").rename_axis(None)
    names = {}
    for column in runs:
        name = column.removeprefix(METRIC_COLUMN)
        if name != column and not name.startswith(EPOCH):
            names[column] = name
    return runs[["run_id", *names]].rename(columns=names)
