"""Faults end in one line and code 2; files are whole or absent."""

import errno
import json

import pytest
from safetensors import SafetensorError

from stages.core import stage as stages
from stages.core.atomic import atomic_write
from stages.core.stage import InputError, stage


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("fault", "line"),
    [
        (InputError("lr = 3: too high"), "work: lr = 3: too high"),
        (OSError(errno.ENOSPC, "No space left on device", "data/x"), "work: No space left on device: data/x"),
        (
            OSError("Caught OSError in worker 0.\nTraceback ...\nOSError: a.jpg is truncated"),
            "OSError: a.jpg is truncated",
        ),
        (SafetensorError("I/O error: No space left on device"), "work: I/O error: No space left on device"),
    ],
)
def test_a_fault_is_one_line_and_code_2(fault, line, capsys):
    with pytest.raises(SystemExit) as ended, stage("work"):
        raise fault
    assert ended.value.code == 2
    told = capsys.readouterr().err
    assert told.count("\n") == 1
    assert told.strip().endswith(line)
    assert not stages.TIMINGS.exists()


def test_an_unwritable_place_is_named(folder, capsys):
    (folder / "reports").write_text("a file where a folder should be")
    with pytest.raises(SystemExit), stage("work"):
        pass
    assert "reports" in capsys.readouterr().err


def test_a_bug_is_not_hidden():
    with pytest.raises(ZeroDivisionError), stage("work"):
        1 / 0  # noqa: B018


def test_seconds_are_kept_by_stage():
    for name in ("one", "two"):
        with stage(name):
            pass
    assert set(json.loads(stages.TIMINGS.read_text())) == {"one", "two"}


def test_a_file_is_whole_or_absent(folder):
    path = folder / "deep/er/file"
    with pytest.raises(RuntimeError), atomic_write(path) as beside:
        beside.write_text("half")
        raise RuntimeError
    assert not list(path.parent.iterdir())
    for text in ("first", "second"):
        with atomic_write(path) as beside:
            beside.write_text(text)
    assert path.read_text() == "second"
    assert len(list(path.parent.iterdir())) == 1
