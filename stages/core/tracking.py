"""Runs in MLflow: registered from their records, at most once, and never at the price of a result.

The report's stage registers all runs that it shows, in one go: a stage that did so itself would spend four seconds on
it. `python -m stages.core.tracking` (and `make ui`) registers every record that is there.
"""

import json
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

os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")  # an absent server costs seconds, not minutes
os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")

from filelock import FileLock
from mlflow import MlflowClient
from mlflow.entities import Metric, Param
from mlflow.entities import Run as MlflowRun
from mlflow.utils.mlflow_tags import MLFLOW_GIT_COMMIT, MLFLOW_RUN_NAME

from stages.core.runs import RUNS, Run, read_run
from stages.core.skipped import skip_reason
from stages.core.stage import TIMINGS, first_line, git_revision

for chatty, level in (("alembic", logging.WARNING), ("mlflow", logging.WARNING), ("urllib3", logging.ERROR)):
    logging.getLogger(chatty).setLevel(level)

IDENTITY = "vitlab.identity"  # a tag: the SHA-256 of the record that the run was registered from
BATCH = 1000  # metrics a request, MLflow's limit


@dataclass(frozen=True)
class Tracked:
    """A run as MLflow holds it: its id and its final metrics."""

    run_id: str
    metrics: dict[str, float]


def store_uri() -> str:
    """`MLFLOW_TRACKING_URI`, or a sqlite file at the project's root (not in an experiment's temporary copy)."""
    return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{_root() / 'mlflow.db'}"


def _root() -> Path:
    return Path(os.environ.get("DVC_ROOT") or ".").resolve()


@contextmanager
def _survived(lost: str) -> Iterator[None]:
    """Whatever goes wrong inside is told in one line, with what is `lost`, and ends there: the record is the result."""
    try:
        yield
    except Exception as fault:  # noqa: BLE001 - any store, any transport; none may lose a training result
        print(f"MLflow store {store_uri()} not usable, {lost}: {first_line(fault)[:200]}", file=sys.stderr)


def _open() -> MlflowClient:
    """A client of the store, made first where it is a new local file: two makers at once would break it."""
    with FileLock(_root() / "mlflow.db.lock", timeout=120):
        client = MlflowClient(store_uri())
        client.search_experiments(max_results=1)
    return client


def register(runs: list[Run]) -> dict[str, Tracked]:
    """Register every run that no finished MLflow run has the identity of; returns what MLflow holds, by identity.

    Empty where the store fails at any of them. MLflow's durations are the stages' seconds, shared by a stage's runs;
    the records do not hold them.
    """
    more = f" and {len(runs) - 1} more" if len(runs) > 1 else ""
    with _survived(f"{runs[0].name}{more} not registered"):
        client, took = _open(), _seconds(runs)
        ids = {run.identity: _find(client, run) or _create(client, run, took[run.stage]) for run in runs}
        return {identity: Tracked(one, dict(client.get_run(one).data.metrics)) for identity, one in ids.items()}
    return {}


def _seconds(runs: list[Run]) -> dict[str, float]:
    """What a run of every stage took here, as far as that is known."""
    try:
        timings = json.loads(TIMINGS.read_text())
    except (FileNotFoundError, ValueError):
        timings = {}
    counts = Counter(run.stage for run in runs)
    return {stage: timings.get(stage, {}).get("seconds", 0.0) / count for stage, count in counts.items()}


def attach(figures: dict[str, list[Path]]) -> None:
    """Add figures to registered runs, by run id, under `figures/`; the same file again replaces itself."""
    with _survived("figures not attached"):
        client = _open()
        for run_id, files in figures.items():
            for file in files:
                client.log_artifact(run_id, str(file), "figures")


def _find(client: MlflowClient, run: Run) -> str | None:
    experiment = client.get_experiment_by_name(_experiment_name(run))
    if experiment is None:
        return None
    same = f"tags.`{IDENTITY}` = '{run.identity}' and attributes.status = 'FINISHED'"
    found: list[MlflowRun] = client.search_runs([experiment.experiment_id], same, max_results=1)
    return found[0].info.run_id if found else None


def _create(client: MlflowClient, run: Run, seconds: float) -> str:
    began = int((time.time() - seconds) * 1000)
    created = client.create_run(_experiment_id(client, run), start_time=began, tags=_tags(run), run_name=run.name)
    run_id, status = created.info.run_id, "FAILED"
    try:
        metrics = list(_metrics(run, int(time.time() * 1000)))
        client.log_batch(run_id, params=_params(run))
        for first in range(0, len(metrics), BATCH):
            client.log_batch(run_id, metrics=metrics[first : first + BATCH])
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
    local = store_uri().startswith("sqlite:")  # a server knows its own place for artifacts
    place = (_root() / "mlartifacts" / run.task).as_uri() if local else None
    return client.create_experiment(_experiment_name(run), artifact_location=place)


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


def _metrics(run: Run, now: int) -> Iterator[Metric]:
    for key, value in _numbers(run.metrics):
        yield Metric(key, value, now, 0)
    for row in run.history:
        for key, value in _numbers({key: value for key, value in row.items() if key != "epoch"}):
            yield Metric(f"epoch/{key}", value, now, row["epoch"])


def _numbers(values: dict, prefix: str = "") -> Iterator[tuple[str, float]]:
    """Numbers of a nested dict under names that MLflow allows; what is undefined or no number is left out."""
    for key, value in values.items():
        name = prefix + (re.sub(r"[^\w\-. :]", "_", str(key)).strip(".") or "_")
        if isinstance(value, dict):
            yield from _numbers(value, f"{name}/")
        elif isinstance(value, int | float):
            yield name, float(value)


def main() -> None:
    """Register every record in `reports/runs`."""
    paths = [path for path in sorted(RUNS.glob("*/*.json")) if not skip_reason(path)]
    tracked = register([read_run(path.parent.name, path.stem) for path in paths]) if paths else {}
    print(f"{len(tracked)} of {len(paths)} runs are in {store_uri()}")


if __name__ == "__main__":
    main()
