"""The report groups, tags and completes the runs that it shows, and a second report changes nothing."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from mlflow import MlflowClient
from sample_runs import build_run, enter_project, runs_in_store, write_runs

from stages.tracking import report_runs
from stages.tracking.registration import register
from stages.tracking.report_runs import Group, show_in_report
from stages.tracking.store import store_uri


@pytest.fixture(autouse=True)
def project(tmp_path, monkeypatch):
    enter_project(tmp_path, monkeypatch)
    return tmp_path


def retrieval_run(name, seed=1, **changes):
    fields = {"task": "retrieval_grid", "metrics": {"r_at_1": 50.0 + seed}, "history": []}
    params = {"profile": "embedded", "epochs": 8, "seed": seed}
    return build_run(name=name, seed=seed, **{"params": params, **fields, **changes})


def show(title, runs, figures=None, profile="embedded", **details):
    """A report with one group; returns the MLflow runs by name, the group's among them."""
    frame = register(write_runs(*runs))
    run_ids = {frame.loc[run.identity, "run_id"]: run for run in runs}
    show_in_report([Group(title, run_ids, **details)], figures or {}, profile)
    return {run.info.run_name: run for run in runs_in_store()}


def parent_id(run):
    return run.data.tags["mlflow.parentRunId"]


def test_a_group_is_one_parent_with_what_its_runs_share_and_their_numbers(project):
    table = project / "table5.csv"
    table.write_text("Mode,R@1\n")
    runs = [retrieval_run("first"), retrieval_run("second", params={"profile": "embedded", "epochs": 5})]
    details = {"files": [table], "text": "__Table 5__", "metric": "r_at_1", "rows": {"first": 51.0, "second": 53.5}}
    stored = show("Table 5", runs, **details)
    parent = stored["Table 5"]
    assert {parent_id(stored[run.key]) for run in runs} == {parent.info.run_id}
    assert parent.data.metrics == {"r_at_1": 53.5, "rows/first": 51.0, "rows/second": 53.5}
    assert parent.data.params == {"profile": "embedded"}
    tags = {"profile": "embedded", "dvc.stage": "report", "mlflow.source.name": "stages/report"}
    assert tags.items() <= parent.data.tags.items()
    assert parent.data.tags["mlflow.note.content"] == "__Table 5__"
    children = [stored[run.key].info for run in runs]
    assert parent.info.start_time == min(child.start_time for child in children)
    assert parent.info.end_time == max(child.end_time for child in children)
    files = MlflowClient(store_uri()).list_artifacts(parent.info.run_id, "tables")
    assert [file.path for file in files] == ["tables/table5.csv"]


def test_a_second_report_changes_nothing(project, monkeypatch):
    figure = project / "curve.png"
    figure.write_bytes(b"a picture")
    runs = [retrieval_run("first"), retrieval_run("second")]
    run_id = register(write_runs(*runs))["run_id"].iloc[0]
    details = {"figures": {run_id: [figure]}, "files": [figure], "text": "text", "metric": "r_at_1", "rows": {"a": 1.0}}
    first = {name: run.to_dictionary() for name, run in show("Table 5", runs, **details).items()}
    for name in ("log_artifact", "log_batch", "set_tag", "delete_tag", "create_run"):
        monkeypatch.setattr(MlflowClient, name, None)
    assert {name: run.to_dictionary() for name, run in show("Table 5", runs, **details).items()} == first


def test_changed_figures_tables_and_texts_replace_the_old_ones(project):
    figure = project / "curve.png"
    for content in ("first", "second"):
        figure.write_text(content)
        run_id = register(write_runs(retrieval_run("first")))["run_id"].iloc[0]
        figures = {run_id: [figure]}
        stored = show("Table 5", [retrieval_run("first")], figures, files=[figure], text=content)
    assert stored.keys() == {"first-seed1", "Table 5"}
    assert stored["Table 5"].data.tags["mlflow.note.content"] == "second"
    client = MlflowClient(store_uri())
    for run, folder in (("first-seed1", "figures"), ("Table 5", "tables")):
        (path,) = [file.path for file in client.list_artifacts(stored[run].info.run_id, folder)]
        local = client.download_artifacts(stored[run].info.run_id, path, str(project))
        assert Path(local).read_text() == "second"


def test_a_run_belongs_to_the_newest_report_that_shows_it():
    shared = retrieval_run("shared")
    old = show("Table 5", [shared, retrieval_run("old")])["Table 5"].info.run_id
    show("Table 5", [shared, retrieval_run("new")])
    stored = {run.info.run_name: run for run in runs_in_store() if run.info.run_id != old}
    new = stored["Table 5"].info.run_id
    assert [parent_id(stored[name]) for name in ("shared-seed1", "old-seed1", "new-seed1")] == [new, old, new]
    show("Table 5", [shared, retrieval_run("old")])  # the first params again
    stored = {run.info.run_name: run for run in runs_in_store()}
    assert [parent_id(stored[name]) for name in ("shared-seed1", "old-seed1", "new-seed1")] == [old, old, new]
    assert len(stored) + 1 == len(runs_in_store())  # both parents are called Table 5


def test_the_report_tag_moves_with_the_report_of_the_same_profile_and_experiment(monkeypatch):
    folder_params = {"profile": "folder"}
    monkeypatch.setenv("DVC_EXP_NAME", "other")
    show("Table 5", [retrieval_run("other")])
    monkeypatch.delenv("DVC_EXP_NAME")
    show("Table 5", [retrieval_run("folder", params=folder_params)], profile="folder")
    show("Table 5", [retrieval_run("gone"), retrieval_run("stays")])
    stored = show("Table 5", [retrieval_run("stays")])
    tagged = {run.info.run_name for run in runs_in_store() if run.data.tags.get("report") == "Table 5"}
    assert tagged == {"other-seed1", "folder-seed1", "stays-seed1", "Table 5"}
    assert "report" not in stored["gone-seed1"].data.tags


def test_a_description_that_mlflow_would_refuse_is_left_out():
    stored = show("Table 5", [retrieval_run("first")], text="x" * 8001)
    assert "mlflow.note.content" not in stored["Table 5"].data.tags


def test_an_interrupted_group_is_made_anew(monkeypatch, capsys):
    with monkeypatch.context() as patch:
        patch.setattr(report_runs, "log_metrics", lambda *_: 1 / 0)
        show("Table 5", [retrieval_run("first")])
    assert "figures, models and groups not added: division by zero" in capsys.readouterr().err
    show("Table 5", [retrieval_run("first")])
    parents = [run for run in runs_in_store() if run.info.run_name == "Table 5"]
    assert sorted(run.info.status for run in parents) == ["FAILED", "FINISHED"]
    (child,) = [run for run in runs_in_store() if run.info.run_name == "first-seed1"]
    assert parent_id(child) == next(run.info.run_id for run in parents if run.info.status == "FINISHED")


def test_captions_are_a_table_of_their_own_run(project):
    path = project / "captions.parquet"
    columns = {
        "cell": ["greedy", "greedy", "k50", "k50"],
        "seed": pa.array([None, None, 1, 2], pa.int64()),
        "image_id": ["a", "b", "a", "a"],
        "caption": ["a ring", "a star", "rings", "stars"],
        "reference": ["one ring", "one star", "one ring", "one ring"],
    }
    pq.write_table(pa.table(columns), path)
    fields = {"task": "captioning", "history": [], "artifacts": {"predictions": str(path)}, "params": {}}
    stored = show("Table 2", [build_run(name="greedy", **fields), build_run(name="k50", seed=2, **fields)])
    tables = {}
    for name in ("greedy", "k50-seed2"):
        info = stored[name].info
        tables[name] = MlflowClient(store_uri()).load_table(info.experiment_id, "captions.json", [info.run_id])
    assert list(tables["greedy"]) == ["image_id", "caption", "reference"]
    assert tables["greedy"].values.tolist() == [["a", "a ring", "one ring"], ["b", "a star", "one star"]]
    assert tables["k50-seed2"].values.tolist() == [["a", "stars", "one ring"]]
