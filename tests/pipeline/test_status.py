"""`make status` says in words what DVC would run, and why."""

import json
import subprocess

import pytest
from ruamel.yaml import YAML

from stages.core.stage import InputError
from stages.pipeline import status
from stages.pipeline.status import explain, format_status, stages_after

EDGES = [("data", "train"), ("data", "look"), ("train", "report"), ("look", "report")]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ([{"changed deps": {"params.yaml": {"task.lr": "modified"}}}], ["param changed: task.lr"]),
        (
            [{"changed deps": {"params.yaml": {"a": "new", "b": "deleted"}}}],
            ["param added: a", "param removed: b"],
        ),
        (
            [{"changed deps": {"stages/core": "modified", "data/a.parquet": "modified"}}],
            ["code changed: stages/core", "input changed: data/a.parquet"],
        ),
        (
            [{"changed outs": {"a": "not in cache", "b": "deleted", "c": "modified"}}],
            ["output missing", "output changed: c"],
        ),
        ([{"changed deps": {"a": "deleted"}}], ["input missing: a"]),
        ([{"changed deps": {"a": "deleted"}}, {"changed outs": {"b": "deleted"}}], ["output missing"]),
        (["changed checksum"], ["command changed"]),
        (["always changed"], ["always changed"]),
    ],
)
def test_reasons_in_words(changes, words):
    assert explain(changes) == words


def test_stages_after_a_changed_one_are_followed_to_the_end():
    assert stages_after({"data"}, EDGES) == ["train", "look", "report"]
    assert stages_after({"look", "train"}, EDGES) == ["report"]
    assert stages_after({"report"}, EDGES) == []
    assert stages_after({"check_params"}, [("check_params", "train"), *EDGES]) == []  # its output never changes


def test_every_stage_has_its_reason():
    changes = {
        "train": [{"changed deps": {"params.yaml": {"task.lr": "modified"}}}],
        "look": [{"changed outs": {"reports/look": "deleted"}}],
    }
    text = format_status(changes, EDGES, finished={"train"})
    assert "would run 2 stages" in text
    assert "train  param changed: task.lr\n" in text
    assert "look   never run\n" in text
    assert text.splitlines()[-1].endswith(" report")


def test_nothing_to_do_is_one_line():
    assert format_status({}, EDGES, finished={"train"}) == "Nothing to do: everything is up to date."


def test_lines_fit_into_100_columns():
    inputs = {f"data/predictions/some/long/folder/of_number_{index}.parquet": "deleted" for index in range(9)}
    changes = {f"train_head@transformer_shared_qk-{index}": [{"changed deps": inputs}] for index in range(20)}
    edges = [(name, f"after_{name}") for name in changes]
    text = format_status(changes, edges, finished=set(changes))
    assert max(map(len, text.splitlines())) <= 100
    assert "and 6 more" in " ".join(text.split())


def test_dvc_is_asked(tmp_path, monkeypatch, capsys):
    """A stage that has run, one after it, and a frozen one that `dvc repro` would not run."""
    monkeypatch.chdir(tmp_path)
    stages = {
        "first": {"cmd": "echo a > a", "params": ["task.lr"], "outs": ["a"]},
        "second": {"cmd": "cp a b", "deps": ["a"], "outs": ["b"]},
        "pretrain": {"cmd": "false", "frozen": True, "outs": ["c"]},
    }
    YAML().dump({"stages": stages}, tmp_path / "dvc.yaml")
    (tmp_path / "params.yaml").write_text("task: {lr: 1}\n")
    (tmp_path / ".dvc").mkdir()
    (tmp_path / ".dvc/config").write_text("[core]\n    no_scm = true\n")
    subprocess.run(["dvc", "repro", "-q", "second"], check=True)
    assert status.load_status() == {}
    (tmp_path / "params.yaml").write_text("task: {lr: 2}\n")
    changes = status.load_status()
    assert {name: explain(change) for name, change in changes.items()} == {"first": ["param changed: task.lr"]}
    assert status.load_edges() == [("first", "second")]
    assert status.finished_stages() == {"first", "second"}


def test_dvcs_error_is_one_line(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match="^dvc status: you are not inside of a DVC repository"):
        status.load_status()


def test_lines_that_dvc_logs_before_its_answer_are_skipped(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "dvc.yaml").write_text("stages: {first: {cmd: a}}")
    (tmp_path / "params.yaml").write_text("seed: 1")
    answer = {"first": ["changed checksum"]}
    monkeypatch.setattr(status, "_run_dvc", lambda *command: f"Computing md5 of a file\n{json.dumps(answer)}\n")
    assert status.load_status() == answer
