"""Runs are registered in MLflow once, from their records; a failing store costs nothing."""

import contextlib
import json
import os
import sqlite3
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pandas as pd
import pytest
from conftest import ROOT
from mlflow import MlflowClient
from sample_runs import build_run, enter_project, runs_in_store, write_runs

from stages.core.runs import RUNS, read_run, record_path, write_run
from stages.core.skipped import mark_skipped
from stages.core.stage import TIMINGS, InputError
from stages.tracking import __main__ as tracking
from stages.tracking import content, registration, store


@pytest.fixture(autouse=True)
def project(tmp_path, monkeypatch):
    enter_project(tmp_path, monkeypatch)
    return tmp_path


def test_record_round_trip_and_identity():
    (run,) = write_runs(build_run())
    assert read_run("segmentation", "linear") == run
    assert run.identity == build_run().identity
    assert run.identity != build_run(metrics={"miou": 31.26}).identity


def test_missing_and_invalid_records_are_named():
    with pytest.raises(InputError, match="no run record at reports/runs/segmentation/linear.json"):
        read_run("segmentation", "linear")
    path = record_path("segmentation", "linear")
    path.parent.mkdir(parents=True)
    for text in ("{", "[]", '{"status": "new"}'):
        path.write_text(text)
        with pytest.raises(InputError, match="is not a run record"):
            read_run("segmentation", "linear")


def test_nan_is_never_written():
    run = build_run(metrics={"miou": float("nan")})
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_run(run)
    assert not run.path.exists()


def test_run_is_registered_once_with_metrics_params_tags_and_record():
    (run,) = write_runs(build_run())
    frame = registration.register([run])
    pd.testing.assert_frame_equal(registration.register([run]), frame)
    assert len(runs_in_store()) == 1
    assert (frame.loc[run.identity, "miou"], frame.loc[run.identity, "best_epoch"]) == (31.25, 2)
    run_id = frame.loc[run.identity, "run_id"]
    client = MlflowClient(store.store_uri())
    curve = client.get_metric_history(run_id, "epoch/miou")
    assert [(metric.step, metric.value) for metric in curve] == [(1, 10.0), (2, 31.25)]
    class_curve = client.get_metric_history(run_id, "epoch/iou/a _b_")
    assert [metric.value for metric in class_curve] == [1.0, 2.0]
    data = client.get_run(run_id).data
    assert data.params["lr"] == "0.001"
    assert data.tags[content.IDENTITY] == run.identity
    assert data.tags["dvc.stage"] == "train_head@linear"
    assert [file.path for file in client.list_artifacts(run_id)] == ["linear.json"]


def test_metrics_of_all_tasks_are_one_frame():
    seeds = [build_run(seed=seed, params={"seed": seed}, metrics={"miou": 30.0 + seed}) for seed in (1, 2)]
    runs = write_runs(*seeds, build_run(task="captioning", name="greedy", metrics={"bleu": 20.125}, history=[]))
    frame = registration.register(runs)
    assert set(frame.columns) == {"run_id", "miou", "bleu"}
    assert frame.loc[[run.identity for run in seeds], "miou"].tolist() == [31.0, 32.0]
    assert frame.loc[runs[2].identity, "bleu"] == 20.125
    assert np.isnan(frame.loc[runs[2].identity, "miou"])
    data = MlflowClient(store.store_uri()).get_run(frame.loc[seeds[1].identity, "run_id"]).data
    assert (data.tags["name"], data.tags["seed"], data.params["seed"]) == ("linear", "2", "2")
    assert data.tags["mlflow.runName"] == "linear-seed2"


def test_more_metrics_than_a_request_holds_are_registered(project):
    history = [{"epoch": epoch, "loss": 1.0 / epoch} for epoch in range(1, 2101)]
    (run,) = write_runs(build_run(history=history))
    run_id = registration.register([run]).loc[run.identity, "run_id"]
    assert len(MlflowClient(store.store_uri()).get_metric_history(run_id, "epoch/loss")) == 2100


def test_changed_metrics_are_another_run():
    for miou in (1.0, 2.0):
        registration.register(write_runs(build_run(metrics={"miou": miou})))
    assert len(runs_in_store()) == 2


def test_runs_of_a_stage_share_its_duration():
    runs = write_runs(build_run(name="first"), build_run(name="second"))
    TIMINGS.write_text(json.dumps({"train_head@linear": {"seconds": 8.0}}))
    assert set(registration.register(runs).index) == {run.identity for run in runs}
    infos = [run.info for run in runs_in_store()]
    assert {info.run_name for info in infos} == {"first", "second"}
    assert all(3900 <= info.end_time - info.start_time < 8000 for info in infos)


def test_main_registers_every_record_but_skipped_ones(capsys):
    write_runs(build_run(name="first"), build_run(name="second"))
    mark_skipped("no labels", record_path("classification", "base"), RUNS / "captioning")
    tracking.main()
    assert "2 of 2 runs are in sqlite" in capsys.readouterr().out
    assert {run.info.run_name for run in runs_in_store()} == {"first", "second"}


def test_interrupted_registration_is_repeated(monkeypatch):
    def fail(*_, **__):
        raise OSError("interrupted")

    (run,) = write_runs(build_run())
    with monkeypatch.context() as context:
        context.setattr(MlflowClient, "log_batch", fail)
        assert registration.register([run]) is None
    assert registration.register([run]) is not None
    assert sorted(run.info.status for run in runs_in_store()) == ["FAILED", "FINISHED"]


def test_unreachable_store_is_one_line_of_warning(monkeypatch, capsys):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    assert registration.register([build_run(), build_run(name="second")]) is None
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1
    assert "http://127.0.0.1:9 not usable, linear and 1 more not registered" in lines[0]


def test_store_is_in_the_project_root_even_from_a_temporary_copy(project, monkeypatch):
    monkeypatch.chdir(project.parent)
    assert store.store_uri() == f"sqlite:///{project}/mlflow.db"


def test_class_names_that_mlflow_rejects_are_replaced():
    classes = {"cats/": 1.0, "a//b": 2.0, "..": 3.0, "dogs": 4.0}
    (run,) = write_runs(build_run(history=[{"epoch": 1, "iou": classes}]))
    run_id = registration.register([run]).loc[run.identity, "run_id"]
    client = MlflowClient(store.store_uri())
    for name, value in {"cats_": 1.0, "a__b": 2.0, "_": 3.0, "dogs": 4.0}.items():
        (metric,) = client.get_metric_history(run_id, f"epoch/iou/{name}")
        assert metric.value == value


def test_a_run_whose_metrics_were_changed_in_the_store_is_registered_anew(project, capsys):
    first, second = write_runs(build_run(name="first"), build_run(name="second"))
    frame = registration.register([first, second])
    with sqlite3.connect(project / "mlflow.db") as database:
        database.execute(
            "UPDATE latest_metrics SET value = 99.99 WHERE key = 'miou' AND run_uuid = ?", [frame.run_id.iloc[0]]
        )
        database.execute("DELETE FROM latest_metrics WHERE key = 'best_epoch' AND run_uuid = ?", [frame.run_id.iloc[1]])
    repaired = registration.register([first, second])
    assert repaired.loc[first.identity, "miou"] == 31.25
    assert repaired.loc[second.identity, "best_epoch"] == 2
    assert not set(repaired["run_id"]) & set(frame["run_id"])
    printed = capsys.readouterr().out.splitlines()
    assert [line.split(": ")[0] for line in printed] == [f"MLflow run {run_id}" for run_id in frame["run_id"]]
    assert len(runs_in_store()) == 2


def test_a_kill_while_the_database_is_created_leaves_no_broken_store(project):
    (project / "mlflow.db").unlink()
    (run,) = write_runs(build_run())
    kill = (
        "import os; from mlflow.store.db import utils; utils._upgrade_db = lambda engine: os._exit(9);"
        "from stages.tracking.store import connect; connect()"
    )
    killed = subprocess.run([sys.executable, "-c", kill], env={**os.environ, "PYTHONPATH": str(ROOT)}, timeout=60)
    assert killed.returncode == 9  # after the tables of MLflow's first version, before the later ones
    assert not (project / "mlflow.db").exists()
    assert registration.register([run]) is not None


def test_a_locked_store_is_one_line_of_warning(project, monkeypatch, capfd):
    monkeypatch.setattr(store, "SQLITE_TIMEOUT", 0.05)
    (run,) = write_runs(build_run())
    registration.register([run])
    capfd.readouterr()
    lock = sqlite3.connect(project / "mlflow.db", isolation_level=None)
    lock.execute("BEGIN EXCLUSIVE")
    try:
        assert registration.register([build_run(name="second")]) is None
    finally:
        lock.close()
    lines = capfd.readouterr().err.strip().splitlines()
    assert len(lines) == 1
    assert "not usable, second not registered" in lines[0]
    assert "database is locked" in lines[0]


def test_a_record_of_another_version_is_named():
    (run,) = write_runs(build_run(metrics={"confusion": [[1]]}))
    with pytest.raises(
        InputError, match=rf"{run.path} is not a run record of this version: metric confusion is no number"
    ):
        read_run("segmentation", "linear")


def test_a_server_that_never_finishes_its_answer_is_given_up(monkeypatch, capsys):
    class Drip(BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200)
            self.send_header("Content-Length", "1000000")
            self.end_headers()
            with contextlib.suppress(OSError):
                while True:
                    self.wfile.write(b" ")
                    time.sleep(0.05)

        def log_message(self, *_):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Drip) as server:
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{server.server_port}")
        monkeypatch.setattr(store, "STORE_SECONDS", 0.5)
        assert registration.register([build_run()]) is None
        server.shutdown()
    assert "not finished within 0.5 s" in capsys.readouterr().err
