"""Runs that their process left running in MLflow: it was killed, or the machine lost power."""

import socket

import psutil
from mlflow import MlflowClient

OWNER = "vitlab.process"  # a tag: the machine, the ID and the start time of the process that records the run
START_TOLERANCE = 5.0  # seconds; a process's start is computed from the machine's, which moves as the clock is adjusted


def owner_tag() -> dict[str, str]:
    """The tag of the runs that this process records."""
    process = psutil.Process()
    return {OWNER: f"{socket.gethostname()} {process.pid} {process.create_time():.0f}"}


def mark_abandoned(client: MlflowClient, experiments: list[str]) -> None:
    """Mark runs as failed that a process of this machine has left running in these experiments."""
    for run in client.search_runs(experiments, "attributes.status = 'RUNNING'"):
        owner = run.data.tags.get(OWNER)
        if owner is None:
            continue
        host, pid, start = owner.split()
        if host == socket.gethostname() and not _exists(int(pid), float(start)):
            client.set_terminated(run.info.run_id, "FAILED")


def _exists(pid: int, start: float) -> bool:
    """Whether a process still runs. A later one may have its ID, but not its start time."""
    try:
        return abs(psutil.Process(pid).create_time() - start) < START_TOLERANCE
    except psutil.NoSuchProcess:
        return False
