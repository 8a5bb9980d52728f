"""The table of experiments: what they changed, in params and headline metrics."""

import json
import subprocess

import pytest

from stages.compare import __main__ as compare
from stages.compare.__main__ import format_comparison
from stages.compare.experiments import load_experiments, parse_experiments
from stages.core.stage import InputError

PARAMS = {"retrieval": {"lr": 0.001, "seeds": [1, 2]}, "segmentation": {"heads": {"linear": {"kind": "linear"}}}}
METRICS = {"retrieval": {"scratch": {"r_at_1": 50.0}}, "segmentation": {"linear": {"miou": 60.0}}}


def revision(name=None, params=PARAMS, metrics=METRICS, rev="0123456789"):
    """A revision as in the JSON of `dvc exp show`."""
    data = {"params": {"params.yaml": {"data": params}}, "metrics": {"reports/metrics.json": {"data": metrics}}}
    return {"rev": rev, "name": name, "data": data, "error": None, "experiments": None}


def experiment(name, lr=0.001, recall=50.0, state="success", params=None, metrics=None):
    params = params or {**PARAMS, "retrieval": {**PARAMS["retrieval"], "lr": lr}}
    metrics = metrics or {**METRICS, "retrieval": {"scratch": {"r_at_1": recall}}}
    executor = state and {"state": state, "name": "dvc-task"}  # none after `dvc exp run` without a queue
    return {"name": name, "executor": executor, "revs": [revision(name, params, metrics)]}


def table(*experiments, workspace=None, width=110):
    """The lines of the table of a commit with these experiments, without spaces at their ends."""
    commit = revision("main") | {"experiments": list(experiments) or None}
    text = format_comparison(*parse_experiments([workspace or revision(rev="workspace"), commit]), width)
    return text.splitlines()


def test_only_what_differs_has_a_column():
    assert table(experiment("best", 0.003, 52.5, state=None), experiment("worse", 0.0003, 47.25)) == [
        "                         retrieval",
        "              retrieval  scratch",
        "experiment    lr         r_at_1",
        "------------  ---------  -----------",
        "main 0123456  0.001      50.00",
        "best          0.003      52.50 +2.50",
        "worse         0.0003     47.25 -2.75",
    ]


def test_experiments_that_have_not_finished_have_a_state_and_no_metrics():
    """DVC lists the baseline's metrics for them."""
    lines = table(experiment("a", 0.1, 40.0), experiment("b", "fast", state="failed"), experiment("c", state="queued"))
    assert [line.split() for line in lines[-4:]] == [
        ["main", "0123456", "-", "0.001", "50.00"],
        ["a", "success", "0.1", "40.00", "-10.00"],
        ["b", "failed", "fast", "-"],
        ["c", "queued", "0.001", "-"],
    ]


def test_added_and_removed_params_and_runs_are_dashes_where_they_are_missing():
    added = experiment(
        "added",
        params={**PARAMS, "segmentation": {"heads": {"linear": {"kind": "linear"}, "new": {"kind": "transformer"}}}},
        metrics={**METRICS, "segmentation": {"linear": {"miou": 60.0}, "new": {"miou": 70.0}}},
    )
    removed = experiment(
        "removed", params={**PARAMS, "segmentation": {"heads": {}}}, metrics={"retrieval": METRICS["retrieval"]}
    )
    lines = [line.split() for line in table(added, removed)]
    assert lines[-5:] == [
        ["experiment", "kind", "kind", "miou", "miou"],
        ["-" * 12, "-" * 12, "-" * 12, "-" * 12, "-" * 12],
        ["main", "0123456", "linear", "-", "60.00", "-"],
        ["added", "linear", "transformer", "60.00", "70.00"],
        ["removed", "-", "-", "-", "-"],
    ]


def test_a_wide_table_is_broken_into_blocks_that_fit():
    heads = {f"head_{index}": {"miou": 50.0 + index} for index in range(12)}
    lines = table(experiment("all", metrics={"segmentation": heads}), width=60)
    assert max(map(len, lines)) <= 60
    assert lines.count("") >= 2
    assert sum(line.startswith("all") for line in lines) == lines.count("") + 1
    assert all(name in " ".join(lines) for name in heads)


def test_the_workspace_has_a_row_if_nothing_else_is_like_it():
    changed = experiment("mine", 0.1, 40.0)
    (state,) = changed["revs"]
    assert not any(line.startswith("workspace") for line in table(changed, workspace=state))
    assert any(line.startswith("workspace  ") for line in table(workspace=state))


def test_without_experiments_the_table_says_how_to_run_one():
    lines = table()
    assert lines[0].startswith("No experiments on main 0123456.")
    assert lines[1].strip() == "dvc exp run -S retrieval.lr=3e-4"


def test_experiments_without_a_difference_say_so():
    assert table(experiment("same"))[-2:] == ["", "No headline metric differs."]


def test_an_error_of_dvc_is_passed_on(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match="not inside of a DVC repository"):
        load_experiments()


def test_the_width_is_that_of_the_terminal(monkeypatch, capsys):
    commit = revision("main") | {"experiments": [experiment("best", 0.003, 52.5)]}
    output = json.dumps([revision(rev="workspace"), commit])
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: subprocess.CompletedProcess([], 0, output, ""))
    monkeypatch.setenv("COLUMNS", "30")
    compare.main()
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 30
    assert sum(line.startswith("best") for line in lines) == 2
