"""The MLflow store: where it is, how it is opened, and what happens if it cannot be used."""

import logging
import os
import signal
import sqlite3
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

# MLflow reads these when it is imported.
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")  # an unreachable server costs seconds, not minutes
os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")

import mlflow
from filelock import FileLock
from mlflow import MlflowClient
from mlflow.entities import Run as MlflowRun
from mlflow.exceptions import MlflowException
from sqlalchemy import event
from sqlalchemy.engine import Engine

from stages.core.atomic import atomic_write
from stages.core.messages import hide_credentials
from stages.core.stage import first_line

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

STORE_SECONDS = 600.0  # for all runs; a hundred take ten seconds in a local store
SQLITE_TIMEOUT = 5.0  # seconds to wait for another process that writes
# MLflow's page of such an experiment has runs and models; by default it has traces and prompts of language models.
EXPERIMENT_TAGS = {"mlflow.experimentKind": "custom_model_development"}
SQLITE = "sqlite:///"  # starts the URI of a database file


def store_uri() -> str:
    """`MLFLOW_TRACKING_URI`, or an SQLite file in the project's root (not in a DVC experiment's temporary copy)."""
    return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{project_root() / 'mlflow.db'}"


def experiment_id(client: MlflowClient, task: str) -> str:
    """The ID of a task's experiment, which is created if it is missing."""
    name = f"vitlab-{task}"
    experiment = client.get_experiment_by_name(name)
    if experiment is not None:
        return experiment.experiment_id
    location = None  # a server decides where artifacts go
    if store_uri().startswith(SQLITE):
        location = (project_root() / "mlartifacts" / task).as_uri()
    try:
        return client.create_experiment(name, artifact_location=location, tags=EXPERIMENT_TAGS)
    except MlflowException:
        # Another process that uses the same store may have created it since.
        experiment = client.get_experiment_by_name(name)
        if experiment is None:
            raise
        return experiment.experiment_id


def search_runs(query: str, **options: Any) -> Any:
    """The runs of all experiments that match a query, as `mlflow.search_runs` returns them with `options`."""
    mlflow.set_tracking_uri(store_uri())
    return mlflow.search_runs(search_all_experiments=True, filter_string=query, **options)


def id_query(run_ids: Iterable[str]) -> str:
    """The query for the runs with these IDs."""
    ids = ", ".join(f"'{run_id}'" for run_id in run_ids)
    return f"attributes.run_id IN ({ids})"


def find_finished(client: MlflowClient, experiment: str, tag: str, value: str) -> MlflowRun | None:
    """A finished run of an experiment with this tag, or None."""
    query = f"tags.`{tag}` = '{value}' and attributes.status = 'FINISHED'"
    matches = client.search_runs([experiment], query, max_results=1)
    return matches[0] if matches else None


def project_root() -> Path:
    """The project's folder: under `dvc exp run --temp` the original one, not its temporary copy."""
    return Path(os.environ.get("DVC_ROOT") or ".").resolve()


@contextmanager
def errors_as_warning(consequence: str) -> Iterator[None]:
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


def connect() -> MlflowClient:
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


@event.listens_for(Engine, "connect")
def _configure_sqlite(connection: Any, _: Any) -> None:
    """Let SQLite write without waiting for the disk: a new store with 108 runs takes 13 s instead of 26 s.

    A power failure may then damage the file; the records from which it is made again are safe.
    """
    if isinstance(connection, sqlite3.Connection):
        connection.execute("PRAGMA synchronous = OFF")
        connection.execute(f"PRAGMA busy_timeout = {int(1000 * SQLITE_TIMEOUT)}")
