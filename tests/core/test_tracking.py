"""Runs are registered in MLflow once, from their records; a failing store costs nothing."""

import json

import pytest
from mlflow import MlflowClient

from stages.core import tracking
from stages.core.runs import RUNS, Run, read_run, record_path, write_run
from stages.core.skipped import mark_skipped
from stages.core.stage import TIMINGS, InputError


def build_run(**changes):
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


def write_runs(*runs):
    for run in runs:
        write_run(run)
    return list(runs)


@pytest.fixture(autouse=True)
def project(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return tmp_path


def runs_in_store():
    client = MlflowClient(tracking.store_uri())
    return client.search_runs([experiment.experiment_id for experiment in client.search_experiments()])


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
    tracked = tracking.register([run])[run.identity]
    assert tracking.register([run]) == {run.identity: tracked}
    assert len(runs_in_store()) == 1
    assert tracked.metrics["miou"] == 31.25
    run_id = tracked.run_id
    client = MlflowClient(tracking.store_uri())
    curve = client.get_metric_history(run_id, "epoch/miou")
    assert [(metric.step, metric.value) for metric in curve] == [(1, 10.0), (2, 31.25)]
    class_curve = client.get_metric_history(run_id, "epoch/iou/a _b_")
    assert [metric.value for metric in class_curve] == [1.0, 2.0]
    data = client.get_run(run_id).data
    assert data.params["lr"] == "0.001"
    assert data.tags[tracking.IDENTITY] == run.identity
    assert data.tags["dvc.stage"] == "train_head@linear"
    assert [file.path for file in client.list_artifacts(run_id)] == ["linear.json"]


def test_changed_metrics_are_another_run():
    for miou in (1.0, 2.0):
        tracking.register(write_runs(build_run(metrics={"miou": miou})))
    assert len(runs_in_store()) == 2


def test_runs_of_a_stage_share_its_duration():
    runs = write_runs(build_run(name="first"), build_run(name="second"))
    TIMINGS.write_text(json.dumps({"train_head@linear": {"seconds": 8.0}}))
    tracked = tracking.register(runs)
    assert list(tracked) == [run.identity for run in runs]
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
        assert tracking.register([run]) == {}
    assert tracking.register([run])
    assert sorted(run.info.status for run in runs_in_store()) == ["FAILED", "FINISHED"]


def test_unreachable_store_is_one_line_of_warning(monkeypatch, capsys):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    assert tracking.register([build_run(), build_run(name="second")]) == {}
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1
    assert "http://127.0.0.1:9 not usable, linear and 1 more not registered" in lines[0]


def test_figures_are_attached_and_replaced(project):
    (run,) = write_runs(build_run())
    run_id = tracking.register([run])[run.identity].run_id
    figure = project / "curve.png"
    for content in (b"first", b"second"):
        figure.write_bytes(content)
        tracking.attach({run_id: [figure]})
    client = MlflowClient(tracking.store_uri())
    assert [file.path for file in client.list_artifacts(run_id, "figures")] == ["figures/curve.png"]


def test_store_is_in_the_project_root_even_from_a_temporary_copy(project, monkeypatch):
    monkeypatch.chdir(project.parent)
    assert tracking.store_uri() == f"sqlite:///{project}/mlflow.db"


def test_class_names_that_mlflow_rejects_are_replaced():
    (run,) = write_runs(build_run(metrics={"class_accuracy": {"cats/": 1.0, "a//b": 2.0, "..": 3.0, "dogs": 4.0}}))
    names = set(tracking.register([run])[run.identity].metrics)
    assert {f"class_accuracy/{name}" for name in ("cats_", "a__b", "_", "dogs")} <= names
