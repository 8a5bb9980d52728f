"""Live runs in a real store, recorded by real processes: finished, failed, killed, repeated, abandoned."""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from queue import SimpleQueue

import pytest
import torch
from conftest import ROOT, Project
from mlflow import MlflowClient
from sample_runs import runs_in_store

from stages.core import live
from stages.core.live import record_live
from stages.core.runs import Run, read_run, write_run
from stages.models import vit
from stages.models.checkpoints.record import Checkpoint, write_checkpoint
from stages.params.experiment import load_experiment
from stages.segmentation import extract, train_head
from stages.tracking import abandoned, live_runs, registration, store

HEAD = "data/models/segmentation/linear-seed1.safetensors"
RECORD = "reports/runs/segmentation/linear-seed1.json"


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """A project with cached features of a few scenes, and an empty store: creating one takes seconds."""
    root = tmp_path_factory.mktemp("project")
    (root / "params.yaml").write_bytes((ROOT / "params.yaml").read_bytes())
    Project(root).set(
        embedded__train=8,
        embedded__val=5,
        embedded__objects_train=20,
        embedded__objects_val=20,
        segmentation__epochs=4,
        segmentation__views=2,
        segmentation__batch_size=4,
        compute__workers=0,
        compute__live=True,
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        patch.setenv("DVC_ROOT", str(root))
        patch.setenv("PYTHONPATH", str(ROOT))
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        patch.setattr(live, "START_SECONDS", 0.0)
        patch.setattr(live, "WAIT_SECONDS", 300.0)  # the recorder imports MLflow longer than these trainings take
        torch.manual_seed(0)
        architecture = vit.Architecture(outputs=28)
        path = Path(load_experiment().embedded.backbone)
        vit.save(path, vit.build(architecture), architecture)
        write_checkpoint("backbone", Checkpoint(str(path), str(path), "0"))
        # Not in this process: joblib keeps its workers for a while, in the folder of the test that started them.
        subprocess.run([sys.executable, "-m", "stages.data"], check=True)
        extract.main()
        store.connect()
        yield root


@pytest.fixture(autouse=True)
def empty_store(project):
    yield
    client = MlflowClient(store.store_uri())
    for run in runs_in_store():
        client.delete_run(run.info.run_id)


def statuses():
    return {run.info.run_name: run.info.status for run in runs_in_store()}


def curve(run, name):
    return MlflowClient(store.store_uri()).get_metric_history(run.info.run_id, f"epoch/{name}")


def record(*messages):
    """Record messages in this process, as the recorder does."""
    queue = SimpleQueue()
    for message in (*messages, None):
        queue.put(message)
    live_runs.record_messages("my_stage", queue)


def opened(run):
    return {"kind": "open", "key": run.key, "time": 1000, "run": vars(run), "machine": {"cpu": "small"}}


def epoch(run, number, loss=1.0):
    return {"kind": "epoch", "key": run.key, "time": 1000 + number, "row": {"epoch": number, "loss": loss}}


def finish(run):
    return {"kind": "finish", "key": run.key, "time": 2000}


def build_run(name="mine", **changes):
    fields = {"stage": "my_stage", "params": {"lr": 0.1}, "metrics": {"miou": 50.0}, "seed": 1}
    return Run("segmentation", name, **{**fields, **changes})


def wait_for_end(name):
    """The run of this name, once its recorder has ended it."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        for run in runs_in_store():
            if run.info.run_name == name and run.info.status != "RUNNING":
                return run
        time.sleep(0.1)
    raise AssertionError(f"{name} is still running: {statuses()}")


def test_a_head_killed_after_three_epochs_is_a_failed_run_with_three_epochs(project):
    kill = (
        "import os, signal, sys; from stages.core import live; from stages.segmentation import live_head, train_head\n"
        "live.START_SECONDS = 0.0\n"
        "end_epoch = live_head.LiveHead.end_epoch\n"
        "def end_third_epoch(live, row):\n"
        "    end_epoch(live, row)\n"
        "    if row['epoch'] == 3:\n"
        "        os.killpg(os.getpid(), signal.SIGKILL)\n"
        "live_head.LiveHead.end_epoch = end_third_epoch\n"
        "train_head.main('linear', 1)\n"
    )
    start = time.time() * 1000
    process = subprocess.run([sys.executable, "-c", kill], start_new_session=True, capture_output=True, timeout=120)
    killed = time.time() * 1000
    assert process.returncode == -signal.SIGKILL
    run = wait_for_end("linear-seed1")
    assert run.info.status == "FAILED"
    miou = curve(run, "miou")
    assert [metric.step for metric in miou] == [1, 2, 3]
    times = [metric.timestamp for metric in miou]
    assert start < run.info.start_time <= times[0] < times[1] < times[2] < killed
    assert curve(run, "iou/background")
    client = MlflowClient(store.store_uri())
    images = [file.path for file in client.list_artifacts(run.info.run_id, "images")]
    assert {path.split("+")[2] for path in images if path.endswith(".png")} == {"0", "1", "2", "3"}
    assert run.data.params["kind"] == "linear"
    assert not (project / RECORD).exists()


def test_a_recorded_training_ends_in_the_same_bytes_and_is_registered_already(project):
    experiment = load_experiment()
    outputs = {}
    for enabled in (False, True):
        with record_live("train_head@linear-1", enabled) as recorder:
            train_head.run_head(experiment, "linear", 1, recorder)
        outputs[enabled] = [(project / path).read_bytes() for path in (HEAD, RECORD)]
    assert outputs[True] == outputs[False]
    (run,) = runs_in_store()
    assert run.info.status == "FINISHED"
    recorded = read_run("segmentation", "linear-seed1")
    assert [metric.value for metric in curve(run, "miou")] == [row["miou"] for row in recorded.history]
    assert registration.register([recorded]).loc[recorded.identity, "run_id"] == run.info.run_id
    assert len(runs_in_store()) == 1


def test_an_unreachable_store_is_one_line_and_the_training_ends(project, monkeypatch, capfd):
    with monkeypatch.context() as context:
        context.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
        context.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
        with record_live("train_head@linear-1", enabled=True) as recorder:
            run = train_head.run_head(load_experiment(), "linear", 1, recorder)
    assert read_run("segmentation", "linear-seed1") == run
    lines = [line for line in capfd.readouterr().err.splitlines() if line and "epoch/s" not in line]
    assert len(lines) == 1
    assert "http://127.0.0.1:9 not usable, train_head@linear-1 not recorded live" in lines[0]


def test_runs_side_by_side_end_on_their_own():
    first, second = build_run("first"), build_run("second")
    write_run(first)
    record(opened(first), opened(second), epoch(first, 1), epoch(second, 1), epoch(first, 2), finish(first))
    assert statuses() == {"first-seed1": "FINISHED", "second-seed1": "FAILED"}
    steps = {run.info.run_name: [metric.step for metric in curve(run, "loss")] for run in runs_in_store()}
    assert steps == {"first-seed1": [1, 2], "second-seed1": [1]}


def test_a_repeated_run_stays_one_finished_run():
    run = build_run()
    write_run(run)
    record(opened(run), epoch(run, 1), finish(run))
    (first,) = runs_in_store()
    record(opened(run), epoch(run, 1), finish(run))
    (only,) = runs_in_store()
    assert only.info.run_id == first.info.run_id
    changed = build_run(metrics={"miou": 51.0})
    write_run(changed)
    record(opened(changed), finish(changed))
    assert [run.info.status for run in runs_in_store()] == ["FINISHED", "FINISHED"]


def test_a_run_without_its_record_fails(capfd):
    run = build_run("without_record")
    record(opened(run), finish(run))
    assert statuses() == {"without_record-seed1": "FAILED"}
    assert "my_stage not recorded live: no run record at" in capfd.readouterr().err


class OneByOne(list):
    """A queue whose messages arrive one at a time."""

    def get(self):
        return self.pop(0)

    def empty(self):
        return True


def test_after_an_error_of_the_store_nothing_more_is_recorded(monkeypatch, capfd):
    requests = []

    def fail(*_, **__):
        requests.append(1)
        raise OSError("disk full")

    run = build_run()
    messages = OneByOne([opened(run), epoch(run, 1), finish(run), None])
    with monkeypatch.context() as context:
        context.setattr(MlflowClient, "create_run", fail)
        live_runs.record_messages("my_stage", messages)
    assert (messages, len(requests)) == ([], 1)
    (line,) = capfd.readouterr().err.splitlines()
    assert "my_stage not recorded live: disk full" in line


def owner(pid, start):
    return f"{socket.gethostname()} {pid} {start}"


def test_runs_of_dead_processes_are_marked_as_failed_by_the_next_recorder():
    client = store.connect()
    experiment = store.experiment_id(client, "segmentation")
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    owners = {
        "dead": owner(dead.pid, time.time()),
        "reused_id": owner(os.getpid(), 1.0),
        "elsewhere": f"another-machine {dead.pid} 1",
        "no_owner": None,
    }
    for name, value in owners.items():
        tags = {} if value is None else {abandoned.OWNER: value}
        client.create_run(experiment, tags=tags, run_name=name)
    client.create_run(experiment, tags=abandoned.owner_tag(), run_name="alive")
    record(opened(build_run("next")))
    assert statuses() == {
        "dead": "FAILED",
        "reused_id": "FAILED",
        "elsewhere": "RUNNING",
        "no_owner": "RUNNING",
        "alive": "RUNNING",
        "next-seed1": "FAILED",
    }
