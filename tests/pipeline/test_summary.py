"""The end of `make repro`: what ran, what was reused, seconds, headline numbers, the page."""

import json
from datetime import UTC, datetime

import pytest
from conftest import ROOT

from stages.core.stage import InputError
from stages.pipeline import summary
from stages.pipeline.summary import format_metrics, format_summary, stages_run

SINCE = datetime(2026, 11, 30, 12, 0, 0, tzinfo=UTC).timestamp()
TIMINGS = {
    "data": {"seconds": 3.2, "finished": "2026-11-30T11:59:59+0000"},
    "train_head@linear-1": {"seconds": 12.34, "finished": "2026-11-30T13:00:00+0100"},
    "report": {"seconds": 8.0, "finished": "2026-11-30T12:01:00+0000"},
    "train_head@removed-1": {"seconds": 5.0, "finished": "2026-11-30T12:00:30+0000"},
}
NAMES = ["data", "train_head@linear-1", "caption", "report"]
METRICS = {
    "segmentation": {"linear": {"miou": 47.978}, "transformer": {"miou": 70.38}},
    "attention": {"class_attention": {"pretrained": {"hit": 60.6667}}},
}


def test_stages_that_finished_since_the_start_have_run():
    assert stages_run(NAMES, TIMINGS, SINCE) == {"train_head@linear-1": 12.34, "report": 8.0}


def test_the_summary_names_what_ran_and_what_was_reused():
    text = format_summary(NAMES, stages_run(NAMES, TIMINGS, SINCE), 83.4, METRICS, "embedded")
    assert "Ran 2 of 4 stages in 1 min 23 s" in text
    assert "  train_head@linear-1     12.3 s\n  report                   8.0 s\n" in text
    assert "Reused 2:  data, caption\n" in text
    assert "  segmentation miou  linear 47.98, transformer 70.38\n" in text
    assert "  attention hit      class_attention pretrained 60.67\n" in text
    assert "reports/report.html" in text.splitlines()[-1]


def test_nothing_ran():
    text = format_summary(NAMES, {}, 3.0, METRICS, "embedded")
    assert text.splitlines()[0] == "Everything was up to date; nothing ran."
    assert "reports/report.html" in text


def test_lines_fit_into_100_columns_and_break_between_numbers():
    lines = "\n".join(format_metrics(json.loads((ROOT / "reports/metrics.json").read_text()))).splitlines()
    assert max(map(len, lines)) <= 100
    assert all(line[-1].isdigit() or line[-1] == "," for line in lines)


def test_the_command(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "reports").mkdir()
    (tmp_path / "dvc.yaml").write_text("stages: {check_params: {}, data: {}, report: {}}")
    (tmp_path / "params.yaml").write_text("profile: embedded")
    summary.METRICS.write_text(json.dumps(METRICS))
    (tmp_path / "reports/timings.json").write_text(json.dumps(TIMINGS))
    summary.main(SINCE)
    printed = capsys.readouterr().out
    assert "Ran 1 of 2 stages" in printed  # check_params has no duration
    assert "Reused 1:  data" in printed


def test_broken_metrics_are_named(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "reports").mkdir()
    summary.METRICS.write_text("{")
    with pytest.raises(InputError, match=r"reports/metrics.json is not valid JSON"):
        summary.load_metrics()
