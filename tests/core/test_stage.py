"""Input errors end in one line and exit code 2; files are complete or missing."""

import errno
import json

import pytest
import torch
from safetensors import SafetensorError

from stages.core import stage as stages
from stages.core.atomic import atomic_write
from stages.core.stage import InputError, stage


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (InputError("lr = 3: too high"), "lr = 3: too high"),
        (OSError(errno.ENOSPC, "No space left on device", "data/x"), "No space left on device: data/x"),
        (OSError(errno.ENOSPC, "No space left on device"), "No space left on device"),
        (OSError("Caught OSError in worker 0.\nTraceback\nOSError: a.jpg is truncated"), "OSError: a.jpg is truncated"),
        (OSError(), "OSError"),
        (SafetensorError("I/O error: No space left on device"), "I/O error: No space left on device"),
        (
            RuntimeError("DataLoader worker (pid 7) is killed.\nTraceback"),
            "DataLoader worker (pid 7) is killed. Fewer compute.workers need less shared memory (/dev/shm).",
        ),
        (
            RuntimeError(
                "Caught RuntimeError in DataLoader worker process 0.\nOriginal Traceback\nRuntimeError: unable to "
                "allocate shared memory(shm) for file </torch_1_2_0>: No space left on device (28)"
            ),
            "unable to allocate shared memory(shm) for file </torch_1_2_0>: No space left on device (28). "
            "Fewer compute.workers need less shared memory (/dev/shm).",
        ),
        (
            RuntimeError("unable to open shared memory object </torch_1_2_0> in read-write mode: No such file (2)"),
            "unable to open shared memory object </torch_1_2_0> in read-write mode: No such file (2). "
            "Fewer compute.workers need less shared memory (/dev/shm).",
        ),
    ],
)
def test_input_error_is_one_line_and_code_2(error, message, capsys):
    with pytest.raises(SystemExit) as exit_info, stage("work"):
        raise error
    assert exit_info.value.code == 2
    assert capsys.readouterr().err == f"work: {message}\n"
    assert not stages.TIMINGS.exists()


def test_a_finished_stage_does_not_fail_for_its_duration(folder, capsys):
    (folder / "reports").write_text("a file where a folder should be")
    with stage("work"):
        pass
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("work: duration not recorded: ")
    assert "reports" in line


@pytest.mark.parametrize(
    "error", [ZeroDivisionError, RuntimeError, RuntimeError("Caught RuntimeError in DataLoader worker process 0.\nbug")]
)
def test_bug_keeps_its_traceback(error):
    with pytest.raises((ZeroDivisionError, RuntimeError)), stage("work"):
        raise error


def test_durations_are_recorded_by_stage():
    for name in ("data", "report"):
        with stage(name):
            pass
    assert set(json.loads(stages.TIMINGS.read_text())) == {"data", "report"}


def test_the_device_is_recorded_with_the_duration(monkeypatch):
    with stage("data"):
        pass
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "NVIDIA H100 80GB HBM3")
    with stage("train"):
        pass
    devices = {name: timing["device"] for name, timing in stages.read_timings().items()}
    assert devices == {"data": "cpu", "train": "NVIDIA H100 80GB HBM3"}


def test_file_is_complete_or_missing(folder):
    path = folder / "new/folder/file"
    with pytest.raises(RuntimeError), atomic_write(path) as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert not list(path.parent.iterdir())
    for text in ("first", "second"):
        with atomic_write(path) as temporary:
            temporary.write_text(text)
    assert path.read_text() == "second"
    assert len(list(path.parent.iterdir())) == 1


def test_commands_besides_the_pipeline_record_no_duration(folder):
    with stage("data"):
        pass
    with stage("plan", record=False):
        pass
    assert list(json.loads((folder / "reports/timings.json").read_text())) == ["data"]


def test_denormal_floats_are_flushed_within_a_stage_only():
    smallest = torch.full((1,), 2.0**-149)
    with stage("train"):
        assert (smallest * 1).item() == 0
    assert (smallest * 1).item() == 2.0**-149
    with pytest.raises(ValueError), stage("train"):
        raise ValueError
    assert (smallest * 1).item() == 2.0**-149
