"""One MLflow server, two clones of the project that register runs at the same time."""

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections import Counter

import pytest
from conftest import ROOT
from mlflow import MlflowClient

from stages.core.runs import Run, read_run, write_run
from stages.tracking import store
from stages.tracking.registration import register

SECONDS = 120  # for the server to start; under ten on an idle machine


@pytest.fixture
def server(tmp_path):
    """The address of a server that keeps runs and files in a temporary folder."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    address = f"http://127.0.0.1:{port}"
    stored = ("--backend-store-uri", f"sqlite:///{tmp_path}/mlflow.db", "--artifacts-destination", f"{tmp_path}/files")
    command = [sys.executable, "-m", "mlflow", "server", "--workers", "1", "--host", "127.0.0.1", "--port", str(port)]
    environment = {**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    with (tmp_path / "server.log").open("w") as log:
        process = subprocess.Popen(
            [*command, *stored], env=environment, stdout=log, stderr=log, start_new_session=True, cwd=tmp_path
        )
    try:
        deadline = time.monotonic() + SECONDS
        while not _is_up(address):
            assert process.poll() is None, (tmp_path / "server.log").read_text()
            assert time.monotonic() < deadline, "the server does not start"
            time.sleep(0.1)
        yield address
    finally:
        os.killpg(process.pid, signal.SIGTERM)  # with its workers
        process.wait()


def _is_up(address):
    try:
        with urllib.request.urlopen(f"{address}/health", timeout=1):
            return True
    except urllib.error.URLError:
        return False


def test_two_clones_register_their_runs_at_the_same_time(server, tmp_path, monkeypatch):
    clones = [tmp_path / name for name in ("first", "second")]
    for clone in clones:
        clone.mkdir()
        monkeypatch.chdir(clone)
        for name in (clone.name, "equal"):
            history = [{"epoch": 1, "miou": 10.0}]
            write_run(Run("segmentation", name, "train_head", {"lr": 0.001}, {"miou": 10.0}, history))
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "MLFLOW_TRACKING_URI": server}

    def stored():
        client = MlflowClient(server)
        (experiment,) = [entry for entry in client.search_experiments() if entry.name.startswith("vitlab")]
        return client, client.search_runs([experiment.experiment_id])

    command = [sys.executable, "-m", "stages.tracking"]
    pipes = {"stdout": subprocess.PIPE, "text": True}
    for process in [subprocess.Popen(command, cwd=clone, env=environment, **pipes) for clone in clones]:
        assert f"2 of 2 runs are in {server}" in process.communicate()[0]
    client, runs = stored()
    counts = Counter(run.info.run_name for run in runs)
    assert (counts["first"], counts["second"]) == (1, 1)
    # If neither finds the other's, which is not finished yet, there are two.
    assert counts["equal"] in (1, 2)
    assert {run.info.status for run in runs} == {"FINISHED"}
    # The server takes the records too: a clone cannot write to another machine's disk.
    assert [file.path for file in client.list_artifacts(runs[0].info.run_id)] == [f"{runs[0].info.run_name}.json"]

    monkeypatch.setenv("MLFLOW_TRACKING_URI", server)
    assert register([read_run("segmentation", name) for name in ("second", "equal")]) is not None
    assert Counter(run.info.run_name for run in stored()[1]) == counts


def test_an_experiment_that_another_process_has_just_created_is_used(tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    client = store.connect()
    created = store.experiment_id(client, "segmentation")
    find = client.get_experiment_by_name
    answers = iter([lambda _: None, find])  # the other process creates it after the first look
    monkeypatch.setattr(client, "get_experiment_by_name", lambda name: next(answers)(name))
    assert store.experiment_id(client, "segmentation") == created
