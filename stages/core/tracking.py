"""Runs in MLflow, registered from their records, each once. A failing store never costs a result.

The report stage registers all runs that it shows in one go: in every training stage, starting MLflow would take four
seconds. `python -m stages.core.tracking` (and `make ui`) registers every record in `reports/runs`.
"""

import logging
import os
import re
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

# MLflow reads these when it is imported.
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")  # an unreachable server costs seconds, not minutes
os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")

from filelock import FileLock
from mlflow import MlflowClient
from mlflow.entities import Metric, Param
from mlflow.utils.mlflow_tags import MLFLOW_GIT_COMMIT, MLFLOW_RUN_NAME

from stages.core.messages import join_names
from stages.core.runs import RUNS, Run, read_run
from stages.core.skipped import skip_reason
from stages.core.stage import first_line, git_revision, read_timings

# Database migrations and connection retries are logged line by line otherwise.
for logger, level in (("alembic", logging.WARNING), ("mlflow", logging.WARNING), ("urllib3", logging.ERROR)):
    logging.getLogger(logger).setLevel(level)

IDENTITY = "vitlab.identity"  # a tag: the SHA-256 of the record from which the run was registered
METRICS_PER_REQUEST = 1000  # MLflow's limit


@dataclass(frozen=True)
class Tracked:
    """A run in MLflow: its ID and its final metrics."""

    run_id: str
    metrics: dict[str, float]


def store_uri() -> str:
    """`MLFLOW_TRACKING_URI`, or an SQLite file in the project's root (not in a DVC experiment's temporary copy)."""
    return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{_root() / 'mlflow.db'}"


def register(runs: list[Run]) -> dict[str, Tracked]:
    """Register every run that the store lacks; return all of them by their identity, or nothing if the store fails.

    A run is in the store if a finished MLflow run has its identity. Records hold no durations: a stage's duration on
    this machine is divided evenly among its runs.
    """
    with _store_errors_as_warning(f"{join_names([run.name for run in runs], limit=1)} not registered"):
        client = _connect()
        durations = _durations(runs)
        ids = {run.identity: _find_run(client, run) or _create_run(client, run, durations[run.stage]) for run in runs}
        return {
            identity: Tracked(run_id, dict(client.get_run(run_id).data.metrics)) for identity, run_id in ids.items()
        }
    return {}


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
        yield
    except Exception as error:  # noqa: BLE001 - any store and transport; none may lose a training result
        print(f"MLflow store {store_uri()} not usable, {consequence}: {first_line(error)[:200]}", file=sys.stderr)


def _connect() -> MlflowClient:
    # The first access creates the database of a new local store; two processes at once would corrupt it.
    with FileLock(_root() / "mlflow.db.lock", timeout=120):
        client = MlflowClient(store_uri())
        client.search_experiments(max_results=1)
    return client


def _durations(runs: list[Run]) -> dict[str, float]:
    """Seconds per run of each stage; 0 for stages that ran elsewhere."""
    timings = read_timings()
    counts = Counter(run.stage for run in runs)
    return {stage: timings.get(stage, {}).get("seconds", 0.0) / count for stage, count in counts.items()}


def _find_run(client: MlflowClient, run: Run) -> str | None:
    experiment = client.get_experiment_by_name(_experiment_name(run))
    if experiment is None:
        return None
    query = f"tags.`{IDENTITY}` = '{run.identity}' and attributes.status = 'FINISHED'"
    matches = client.search_runs([experiment.experiment_id], query, max_results=1)
    return matches[0].info.run_id if matches else None


def _create_run(client: MlflowClient, run: Run, seconds: float) -> str:
    now = time.time()
    start_time = int((now - seconds) * 1000)  # MLflow counts in milliseconds
    created = client.create_run(_experiment_id(client, run), start_time=start_time, tags=_tags(run), run_name=run.name)
    run_id = created.info.run_id
    status = "FAILED"
    try:
        client.log_batch(run_id, params=_params(run))
        metrics = list(_metrics(run, int(now * 1000)))
        for start in range(0, len(metrics), METRICS_PER_REQUEST):
            client.log_batch(run_id, metrics=metrics[start : start + METRICS_PER_REQUEST])
        client.log_artifact(run_id, str(run.path))
        status = "FINISHED"
    finally:
        client.set_terminated(run_id, status)
    return run_id


def _experiment_name(run: Run) -> str:
    return f"vitlab-{run.task}"


def _experiment_id(client: MlflowClient, run: Run) -> str:
    experiment = client.get_experiment_by_name(_experiment_name(run))
    if experiment is not None:
        return experiment.experiment_id
    location = None  # a server decides where artifacts go
    if store_uri().startswith("sqlite:"):
        location = (_root() / "mlartifacts" / run.task).as_uri()
    return client.create_experiment(_experiment_name(run), artifact_location=location)


def _tags(run: Run) -> dict[str, str]:
    tags = {
        MLFLOW_RUN_NAME: run.name,
        IDENTITY: run.identity,
        "dvc.stage": run.stage,
        "dvc.experiment": os.environ.get("DVC_EXP_NAME"),
        MLFLOW_GIT_COMMIT: git_revision(),
    }
    return {key: value for key, value in tags.items() if value}


def _params(run: Run) -> list[Param]:
    return [Param(key, str(value)) for key, value in {**run.params, **run.inputs}.items()]


def _metrics(run: Run, timestamp: int) -> Iterator[Metric]:
    for key, value in _flatten(run.metrics):
        yield Metric(key, value, timestamp, 0)
    for row in run.history:
        for key, value in _flatten(row):
            if key != "epoch":
                yield Metric(f"epoch/{key}", value, timestamp, row["epoch"])


def _flatten(values: dict, prefix: str = "") -> Iterator[tuple[str, float]]:
    """The numbers of a nested dict as `outer/inner`, in characters that MLflow allows. Other values are left out."""
    for key, value in values.items():
        # Any class name may be part of a key. MLflow rejects names that are not normalized paths, such as `a//b`
        # and `..`, and most punctuation.
        name = prefix + (re.sub(r"[^\w\-. :]", "_", str(key)).strip(".") or "_")
        if isinstance(value, dict):
            yield from _flatten(value, f"{name}/")
        elif isinstance(value, int | float):
            yield name, float(value)


def main() -> None:
    """Register every record in `reports/runs`."""
    paths = [path for path in sorted(RUNS.glob("*/*.json")) if not skip_reason(path)]
    tracked = register([read_run(path.parent.name, path.stem) for path in paths]) if paths else {}
    print(f"{len(tracked)} of {len(paths)} runs are in {store_uri()}")


if __name__ == "__main__":
    main()
