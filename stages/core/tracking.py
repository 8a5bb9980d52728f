"""Runs in MLflow, registered from their records, each once. A failing store never costs a result.

The report stage registers all runs that it shows in one go: in every training stage, starting MLflow would take four
seconds. `python -m stages.core.tracking` (and `make ui`) registers every record in `reports/runs`.
"""

import logging
import os
import re
import signal
import sqlite3
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

# MLflow reads these when it is imported.
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")  # an unreachable server costs seconds, not minutes
os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")

import mlflow
import pandas as pd
from filelock import FileLock
from mlflow import MlflowClient
from mlflow.entities import Metric, Param
from mlflow.utils.mlflow_tags import MLFLOW_GIT_COMMIT, MLFLOW_RUN_NAME
from sqlalchemy import event
from sqlalchemy.engine import Engine

from stages.core.atomic import atomic_write
from stages.core.messages import hide_credentials, join_names
from stages.core.runs import RUNS, Run, read_run
from stages.core.skipped import skip_reason
from stages.core.stage import first_line, git_revision, read_timings

# Database migrations and connection retries are logged line by line otherwise.
# A store that cannot be used is reported in one line, below, so MLflow's own tracebacks are left out.
LOG_LEVELS = {
    "alembic": logging.WARNING,
    "mlflow": logging.WARNING,
    "mlflow.store": logging.CRITICAL,
    "urllib3": logging.ERROR,
}
for logger, level in LOG_LEVELS.items():
    logging.getLogger(logger).setLevel(level)

IDENTITY = "vitlab.identity"  # a tag: the SHA-256 of the record from which the run was registered
ENTITIES_PER_REQUEST = 1000  # MLflow's limit for metrics, and for metrics, params and tags together
EPOCH = "epoch/"  # starts the names of metrics that have a value per epoch
STORE_SECONDS = 600.0  # for all runs; a hundred take ten seconds in a local store
SQLITE_TIMEOUT = 5.0  # seconds to wait for another process that writes
SQLITE = "sqlite:///"  # starts the URI of a database file
METRIC_COLUMN = "metrics."  # starts the columns of metrics in MLflow's DataFrame of runs


def store_uri() -> str:
    """`MLFLOW_TRACKING_URI`, or an SQLite file in the project's root (not in a DVC experiment's temporary copy)."""
    return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{_root() / 'mlflow.db'}"


def register(runs: list[Run]) -> pd.DataFrame | None:
    """Register every run that the store lacks; return all of them as the store holds them, or None if it fails.

    The DataFrame has one row per run, indexed by the run's identity: the column `run_id`, then final metrics by name,
    NaN where a run has no such metric. A run is in the store if a finished MLflow run has its identity; if its metrics
    are not the record's, somebody has changed them, and it is registered anew. Records hold no durations: a stage's
    duration on this machine is divided evenly among its runs.
    """
    with _store_errors_as_warning(f"{join_names([run.name for run in runs], limit=1)} not registered"):
        client = _connect()
        durations = _durations(runs)
        experiments = {task: _experiment_id(client, task) for task in dict.fromkeys(run.task for run in runs)}
        revision = git_revision()

        def create(run: Run) -> str:
            return _create_run(client, run, experiments[run.task], durations[run.stage], revision)

        run_ids = {run.identity: _find_run(client, run, experiments[run.task]) or create(run) for run in runs}
        stored = _read_runs(list(run_ids.values()))
        changed = [run for run in runs if not _equals_record(stored.loc[run.identity], run)]
        for run in changed:
            run_id = run_ids[run.identity]
            print(f"MLflow run {run_id}: its metrics differ from {run.path}; it is deleted and registered anew")
            client.delete_run(run_id)
            run_ids[run.identity] = create(run)
        stored = _read_runs(list(run_ids.values())) if changed else stored
        return stored.loc[list(run_ids)]
    return None


def read_records(runs: list[Run]) -> pd.DataFrame:
    """The runs' metrics as their records hold them, in the form in which `register` returns them; `run_id` is None."""
    frame = pd.DataFrame([run.metrics for run in runs], index=[run.identity for run in runs], dtype=float)
    frame.insert(0, "run_id", None)
    return frame


def attach(figures: dict[str, list[Path]]) -> None:
    """Upload figures, by MLflow run ID, to `figures/`. A file of the same name is replaced."""
    with _store_errors_as_warning("figures not attached"):
        client = _connect()
        for run_id, paths in figures.items():
            for path in paths:
                client.log_artifact(run_id, str(path), "figures")


def _root() -> Path:
    return Path(os.environ.get("DVC_ROOT") or ".").resolve()


@contextmanager
def _store_errors_as_warning(consequence: str) -> Iterator[None]:
    """Print any error of the body in one line, with its consequence, and continue: the record is the result."""
    try:
        with _deadline(STORE_SECONDS):
            yield
    except Exception as error:  # noqa: BLE001 - any store and transport; none may lose a training result
        # The errors of libraries repeat the URI, which may hold a password.
        message = f"MLflow store {store_uri()} not usable, {consequence}: {first_line(error)[:200]}"
        print(hide_credentials(message), file=sys.stderr)


@contextmanager
def _deadline(seconds: float) -> Iterator[None]:
    """Raise `RuntimeError` in the body after `seconds`: a server that sends a byte now and then never times out."""

    def stop(*_: object) -> None:
        # No `TimeoutError`: libraries would take it for the socket's, and try again.
        raise RuntimeError(f"not finished within {seconds:g} s")

    previous = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)


def _connect() -> MlflowClient:
    """A client of the store. The database of a new local store is created whole or not at all."""
    if store_uri().startswith(SQLITE):
        database = Path(store_uri().removeprefix(SQLITE))
        # MLflow creates a database in some forty steps. Two processes at once, or a process that is killed, would
        # leave one that MLflow can neither use nor repair.
        with FileLock(f"{database}.lock", timeout=120):
            if not database.exists():
                with atomic_write(database) as temporary:
                    MlflowClient(f"{SQLITE}{temporary}").search_experiments(max_results=1)
    return MlflowClient(store_uri())


def _equals_record(stored: pd.Series, run: Run) -> bool:
    """Whether the store's final metrics of a run are those of its record."""
    return stored.drop("run_id").dropna().to_dict() == {key: float(value) for key, value in run.metrics.items()}


@event.listens_for(Engine, "connect")
def _configure_sqlite(connection: Any, _: Any) -> None:
    """Let SQLite write without waiting for the disk: a new store with 108 runs takes 13 s instead of 26 s.

    A power failure may then damage the file; the records from which it is made again are safe.
    """
    if isinstance(connection, sqlite3.Connection):
        connection.execute("PRAGMA synchronous = OFF")
        connection.execute(f"PRAGMA busy_timeout = {int(1000 * SQLITE_TIMEOUT)}")


def _durations(runs: list[Run]) -> dict[str, float]:
    """Seconds per run of each stage; 0 for stages that ran elsewhere."""
    timings = read_timings()
    counts = Counter(run.stage for run in runs)
    return {stage: timings.get(stage, {}).get("seconds", 0.0) / count for stage, count in counts.items()}


def _find_run(client: MlflowClient, run: Run, experiment: str) -> str | None:
    query = f"tags.`{IDENTITY}` = '{run.identity}' and attributes.status = 'FINISHED'"
    matches = client.search_runs([experiment], query, max_results=1)
    return matches[0].info.run_id if matches else None


def _create_run(client: MlflowClient, run: Run, experiment: str, seconds: float, revision: str | None) -> str:
    now = time.time()
    start_time = int((now - seconds) * 1000)  # MLflow counts in milliseconds
    created = client.create_run(experiment, start_time=start_time, tags=_tags(run, revision), run_name=run.key)
    run_id = created.info.run_id
    status = "FAILED"
    try:
        params = _params(run)
        metrics = list(_metrics(run, int(now * 1000)))
        # As few requests as possible: on a server each costs a round trip, and on a file each waits for the disk.
        first = ENTITIES_PER_REQUEST - len(params)
        client.log_batch(run_id, params=params, metrics=metrics[:first])
        for start in range(first, len(metrics), ENTITIES_PER_REQUEST):
            client.log_batch(run_id, metrics=metrics[start : start + ENTITIES_PER_REQUEST])
        client.log_artifact(run_id, str(run.path))
        status = "FINISHED"
    finally:
        client.set_terminated(run_id, status)
    return run_id


def _read_runs(run_ids: list[str]) -> pd.DataFrame:
    """Final metrics of these runs in the store, as `register` returns them."""
    mlflow.set_tracking_uri(store_uri())
    ids = ", ".join(f"'{run_id}'" for run_id in run_ids)
    runs = mlflow.search_runs(search_all_experiments=True, filter_string=f"attributes.run_id IN ({ids})")
    runs = runs.set_index(f"tags.{IDENTITY}").rename_axis(None)
    names = {}
    for column in runs:
        name = column.removeprefix(METRIC_COLUMN)
        if name != column and not name.startswith(EPOCH):
            names[column] = name
    return runs[["run_id", *names]].rename(columns=names)


def _experiment_id(client: MlflowClient, task: str) -> str:
    name = f"vitlab-{task}"
    experiment = client.get_experiment_by_name(name)
    if experiment is not None:
        return experiment.experiment_id
    location = None  # a server decides where artifacts go
    if store_uri().startswith(SQLITE):
        location = (_root() / "mlartifacts" / task).as_uri()
    return client.create_experiment(name, artifact_location=location)


def _tags(run: Run, revision: str | None) -> dict[str, str]:
    tags = {
        MLFLOW_RUN_NAME: run.key,
        IDENTITY: run.identity,
        "name": run.name,  # what runs with several seeds share
        "seed": None if run.seed is None else str(run.seed),
        "dvc.stage": run.stage,
        "dvc.experiment": os.environ.get("DVC_EXP_NAME"),
        MLFLOW_GIT_COMMIT: revision,
    }
    return {key: value for key, value in tags.items() if value}


def _params(run: Run) -> list[Param]:
    return [Param(key, str(value)) for key, value in {**run.params, **run.inputs}.items()]


def _metrics(run: Run, timestamp: int) -> Iterator[Metric]:
    """Final metrics by their own names, and the history as `epoch/NAME`, one step per epoch."""
    for key, value in run.metrics.items():
        yield Metric(key, float(value), timestamp, 0)
    for row in run.history:
        for key, value in _flatten(row):
            if key != "epoch":
                yield Metric(f"{EPOCH}{key}", value, timestamp, row["epoch"])


def _flatten(values: dict, prefix: str = "") -> Iterator[tuple[str, float]]:
    """The numbers of an epoch, those by class as `iou/CLASS`, in characters that MLflow allows; null is left out."""
    for key, value in values.items():
        # A class may have any name. MLflow rejects names that are not normalized paths, such as `a//b` and `..`, and
        # most punctuation.
        name = prefix + (re.sub(r"[^\w\-. :]", "_", str(key)).strip(".") or "_")
        if isinstance(value, dict):
            yield from _flatten(value, f"{name}/")
        elif isinstance(value, int | float):
            yield name, float(value)


def main() -> None:
    """Register every record in `reports/runs`."""
    paths = [path for path in sorted(RUNS.glob("*/*.json")) if not skip_reason(path)]
    registered = register([read_run(path.parent.name, path.stem) for path in paths]) if paths else None
    count = 0 if registered is None else len(registered)
    print(hide_credentials(f"{count} of {len(paths)} runs are in {store_uri()}"))


if __name__ == "__main__":
    main()
