"""Runs reach MLflow once, from their records, and a store that fails costs nothing."""

import json

import pytest
from mlflow import MlflowClient

from stages.core import tracking
from stages.core.runs import Run, read_run, record_path, write_run
from stages.core.skipped import mark_skipped
from stages.core.stage import TIMINGS, InputError


def made_up(**changes):
    fields = {
        "task": "segmentation",
        "name": "linear",
        "stage": "train_head@linear",
        "params": {"lr": 0.001, "kind": "linear"},
        "metrics": {"miou": 31.25, "absent_classes": ["boat"]},
        "history": [
            {"epoch": 1, "train_loss": 2.0, "miou": 10.0, "iou": {"a (b)": 1.0, "boat": None}},
            {"epoch": 2, "train_loss": 1.0, "miou": 31.25, "iou": {"a (b)": 2.0, "boat": None}},
        ],
    }
    return Run(**{**fields, **changes})


@pytest.fixture
def project(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return tmp_path


def runs_in_store():
    client = MlflowClient(tracking.store_uri())
    return client.search_runs([experiment.experiment_id for experiment in client.search_experiments()])


def test_record_round_trip_and_identity(project):
    run = made_up()
    write_run(run)
    assert read_run("segmentation", "linear") == run
    assert run.identity == made_up().identity
    assert run.identity != made_up(metrics={"miou": 31.26}).identity


def test_missing_and_broken_records_are_named(project):
    with pytest.raises(InputError, match="no run record at reports/runs/segmentation/linear.json"):
        read_run("segmentation", "linear")
    made_up().path.parent.mkdir(parents=True)
    made_up().path.write_text("{")
    with pytest.raises(InputError, match="is no run record"):
        read_run("segmentation", "linear")


def test_nan_is_never_written(project):
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_run(made_up(metrics={"miou": float("nan")}))
    assert not made_up().path.exists()


def test_registered_once_with_metrics_params_tags_and_record(project):
    run = made_up()
    write_run(run)
    tracked = tracking.register([run])[run.identity]
    assert tracking.register([run]) == {run.identity: tracked}
    assert len(runs_in_store()) == 1
    assert tracked.metrics["miou"] == 31.25
    run_id = tracked.run_id
    client = MlflowClient(tracking.store_uri())
    assert [(m.step, m.value) for m in client.get_metric_history(run_id, "epoch/miou")] == [(1, 10.0), (2, 31.25)]
    assert [m.value for m in client.get_metric_history(run_id, "epoch/iou/a _b_")] == [1.0, 2.0]
    data = client.get_run(run_id).data
    assert data.params["lr"] == "0.001"
    assert data.tags[tracking.IDENTITY] == run.identity
    assert data.tags["dvc.stage"] == "train_head@linear"
    assert [file.path for file in client.list_artifacts(run_id)] == ["linear.json"]


def test_changed_results_are_another_run(project):
    for miou in (1.0, 2.0):
        run = made_up(metrics={"miou": miou})
        write_run(run)
        tracking.register([run])
    assert len(runs_in_store()) == 2


def test_many_runs_are_registered_in_one_go(project):
    runs = [made_up(name=name) for name in ("one", "two")]
    for run in runs:
        write_run(run)
    TIMINGS.write_text(json.dumps({"train_head@linear": {"seconds": 8.0}}))
    found = tracking.register(runs)
    assert list(found) == [run.identity for run in runs]
    assert {info.info.run_name for info in runs_in_store()} == {"one", "two"}
    assert all(3900 <= one.info.end_time - one.info.start_time < 8000 for one in runs_in_store())


def test_every_record_that_is_there_is_registered_by_hand(project, capsys):
    for name in ("one", "two"):
        write_run(made_up(name=name))
    mark_skipped("no labels", record_path("classification", "base"))
    tracking.main()
    assert "2 of 2 runs are in sqlite" in capsys.readouterr().out
    assert {info.info.run_name for info in runs_in_store()} == {"one", "two"}


def test_a_run_cut_off_half_way_is_registered_anew(project, monkeypatch):
    run = made_up()
    write_run(run)
    monkeypatch.setattr(MlflowClient, "log_batch", lambda *_, **__: (_ for _ in ()).throw(OSError("cut off")))
    assert tracking.register([run]) == {}
    monkeypatch.undo()
    monkeypatch.chdir(project)
    monkeypatch.setenv("DVC_ROOT", str(project))
    assert tracking.register([run])
    assert sorted(found.info.status for found in runs_in_store()) == ["FAILED", "FINISHED"]


def test_an_unreachable_store_warns_in_one_line_and_returns(project, monkeypatch, capsys):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    assert tracking.register([made_up()]) == {}
    told = capsys.readouterr().err.strip().splitlines()
    assert len(told) == 1
    assert "http://127.0.0.1:9 not usable, linear not registered" in told[0]


def test_figures_are_attached_and_replace_themselves(project):
    run = made_up()
    write_run(run)
    run_id = tracking.register([run])[run.identity].run_id
    figure = project / "curve.png"
    for content in (b"one", b"two"):
        figure.write_bytes(content)
        tracking.attach({run_id: [figure]})
    client = MlflowClient(tracking.store_uri())
    assert [file.path for file in client.list_artifacts(run_id, "figures")] == ["figures/curve.png"]


def test_the_store_lies_at_the_projects_root_even_from_a_temporary_copy(project, monkeypatch):
    monkeypatch.chdir(project.parent)
    assert tracking.store_uri() == f"sqlite:///{project}/mlflow.db"


def test_names_that_mlflow_refuses_lose_no_run(project):
    run = made_up(metrics={"class_accuracy": {"cats/": 1.0, "a//b": 2.0, "..": 3.0, "dogs": 4.0}})
    write_run(run)
    names = set(tracking.register([run])[run.identity].metrics)
    assert {f"class_accuracy/{name}" for name in ("cats_", "a__b", "_", "dogs")} <= names
