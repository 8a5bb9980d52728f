"""A stage tells its recorder about its runs; a recorder that fails costs nothing."""

import json
import os
import sys
import time
from pathlib import Path

import pytest

from stages.core import live
from stages.core.live import record_live
from stages.core.runs import Run

RUN = Run("segmentation", "linear", "train_head@linear-1", {"lr": 0.1}, metrics={}, seed=1)
ROWS = [{"epoch": epoch, "miou": 10.0 * epoch} for epoch in (1, 2, 3)]


@pytest.fixture(autouse=True)
def at_once(monkeypatch):
    """Do not wait until a stage takes long."""
    monkeypatch.setattr(live, "START_SECONDS", 0.0)


@pytest.fixture
def recorder_script(tmp_path, monkeypatch):
    """Let a shell script be the recorder: it runs in place of Python."""

    def install(script: str) -> None:
        path = tmp_path / "recorder"
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)
        monkeypatch.setattr(sys, "executable", str(path))

    monkeypatch.chdir(tmp_path)
    return install


def train() -> None:
    with record_live(RUN.stage, enabled=True) as recorder:
        run = recorder.open(RUN)
        for row in ROWS:
            run.epoch(row)
        run.image("masks", b"\x89PNG", 3)
        run.finish()


def received() -> list[dict]:
    return [json.loads(line) for line in Path("received").read_text().splitlines()]


def test_messages_arrive_in_order_with_the_time_of_sending(recorder_script):
    recorder_script("cat > received")
    start = time.time() * 1000
    train()
    messages = received()
    assert [message["kind"] for message in messages] == ["open", "epoch", "epoch", "epoch", "image", "finish"]
    assert {message["key"] for message in messages} == {"linear-seed1"}
    assert Run(**messages[0]["run"]) == RUN
    assert [message["row"] for message in messages[1:4]] == ROWS
    times = [message["time"] for message in messages]
    assert times == sorted(times)
    assert int(start) <= times[0] <= times[-1] <= time.time() * 1000


def test_a_failed_stage_sends_no_finish(recorder_script):
    recorder_script("cat > received")
    with pytest.raises(KeyboardInterrupt), record_live(RUN.stage, enabled=True) as recorder:
        recorder.open(RUN).epoch(ROWS[0])
        raise KeyboardInterrupt
    assert [message["kind"] for message in received()] == ["open", "epoch"]


@pytest.mark.parametrize("script", ["exit 1", "head -c 1 > /dev/null; exit 1", "kill -9 $$"])
def test_a_recorder_that_dies_is_one_line(recorder_script, capfd, script):
    recorder_script(script)
    train()
    lines = capfd.readouterr().err.splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("train_head@linear-1: not recorded live, its recorder ended with code ")


def test_a_recorder_that_cannot_be_started_is_one_line(monkeypatch, capfd):
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    train()
    (line,) = capfd.readouterr().err.splitlines()
    assert line.startswith("train_head@linear-1: not recorded live, its recorder cannot be started: No such file")


def test_a_stage_does_not_wait_for_a_slow_recorder(recorder_script, monkeypatch, capfd):
    monkeypatch.setattr(live, "WAIT_SECONDS", 0.05)
    os.mkfifo("gate")
    recorder_script("cat > received; cat gate > /dev/null; touch finished")
    train()
    assert not Path("finished").exists()
    Path("gate").write_text("")  # waits for the script, which has outlived the stage
    assert len(received()) == 6
    assert capfd.readouterr().err == ""


def test_a_stage_that_opens_no_run_starts_no_recorder(monkeypatch):
    monkeypatch.setattr(live, "_start", pytest.fail)
    with record_live(RUN.stage, enabled=True):
        pass


def test_a_short_stage_starts_no_recorder_unless_it_fails(recorder_script, monkeypatch):
    monkeypatch.setattr(live, "START_SECONDS", 600.0)
    recorder_script("cat > received")
    train()
    assert not Path("received").exists()
    with pytest.raises(KeyboardInterrupt), record_live(RUN.stage, enabled=True) as recorder:
        recorder.open(RUN).epoch(ROWS[0])
        raise KeyboardInterrupt
    assert [message["kind"] for message in received()] == ["open", "epoch"]


def test_what_was_sent_before_a_stage_takes_long_is_recorded(recorder_script, monkeypatch):
    monkeypatch.setattr(live, "START_SECONDS", 600.0)
    recorder_script("cat > received")
    with record_live(RUN.stage, enabled=True) as recorder:
        run = recorder.open(RUN)
        run.epoch(ROWS[0])
        assert not Path("received").exists()
        monkeypatch.setattr(live, "START_SECONDS", 0.0)
        run.epoch(ROWS[1])
        run.finish()
    assert [message["kind"] for message in received()] == ["open", "epoch", "epoch", "finish"]
    times = [message["time"] for message in received()]
    assert times == sorted(times)


def test_nothing_is_started_when_switched_off(monkeypatch):
    monkeypatch.setattr(live, "_start", pytest.fail)
    with record_live(RUN.stage, enabled=False) as recorder:
        run = recorder.open(RUN)
        run.epoch(ROWS[0])
        run.finish()
