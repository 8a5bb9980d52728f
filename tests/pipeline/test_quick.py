"""`make quick`: valid small params, a copy of the project as it is now, and a line per stage."""

import os
import sys

import pytest
from conftest import ROOT
from ruamel.yaml import YAML

from stages.core.stage import InputError
from stages.params.experiment import Experiment
from stages.params.section import read_params, validate_params
from stages.pipeline import quick
from stages.pipeline.small_params import LEFT_OUT, shrink
from stages.pipeline.stage_names import read_pipeline, stage_names
from stages.pipeline.workspace import clean_environment, copy_pipeline


def small_experiment(*overrides, head=None):
    """The shipped params, shrunk; `head` is one that a user has added."""
    params = read_params(ROOT / "params.yaml")
    if head:
        params["segmentation"]["heads"][head] = {"kind": "linear"}
    shrink(params, overrides)
    return params, validate_params(Experiment, params)


def test_the_small_params_are_valid_and_small():
    params, experiment = small_experiment()
    assert experiment.embedded.train + experiment.embedded.val < 50
    assert experiment.segmentation.epochs <= 2
    assert {row.epochs for row in experiment.retrieval.grid.values()} == {2}
    assert {setting.epochs for setting in experiment.classification.settings.values()} == {1}
    assert len(stage_names(read_pipeline(ROOT / "dvc.yaml"), params)) == 15


def test_everything_left_out_is_in_the_shipped_params():
    params = read_params(ROOT / "params.yaml")
    for key in LEFT_OUT:
        content = params
        for name in key.split("."):
            assert name in content, key
            content = content[name]


def test_a_users_own_head_and_overrides_are_tried():
    _, experiment = small_experiment("segmentation.epochs=5", head="mine")
    assert list(experiment.segmentation.heads) == ["linear", "mine"]
    assert experiment.segmentation.epochs == 5


def test_stages_are_named_as_dvc_names_them():
    pipeline = {
        "stages": {
            "data": {},
            "pretrain": {"frozen": True},
            "train": {"matrix": {"head": "${task.heads}", "seed": "${task.seeds}"}},
        }
    }
    params = {"task": {"heads": {"a": {}, "b": {}}, "seeds": [1, 2]}}
    assert stage_names(pipeline, params) == ["data", "train@a-1", "train@a-2", "train@b-1", "train@b-2"]


def test_the_copy_has_uncommitted_code_and_none_of_the_users_images(tmp_path):
    source = tmp_path / "source"
    for name in ("stages/mine.py", "dvc.yaml", "data/folder/README.md", "data/folder/a.jpg", "reports/report.md"):
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        (source / name).write_text(name)
    copy_pipeline(source, tmp_path / "copy")
    copied = {path.relative_to(tmp_path / "copy").as_posix() for path in (tmp_path / "copy").rglob("*.*")}
    assert {"stages/mine.py", "dvc.yaml", "data/folder/README.md"} <= copied
    assert not {"data/folder/a.jpg", "reports/report.md"} & copied


def test_a_shared_mlflow_server_does_not_get_these_runs(monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://server")
    environment = clean_environment()
    assert "MLFLOW_TRACKING_URI" not in environment
    assert environment["PATH"].startswith(os.path.dirname(sys.executable))  # noqa: PTH120


def test_a_line_per_stage_and_the_output_of_the_last(capsys):
    lines = [
        "'data/scenes' didn't change, skipping\n",
        "Running stage 'data':\n",
        "> python -m stages.data\n",
        "Running stage 'train_head@linear-1':\n",
        "train_head: heads.linear: wrong\n",
    ]
    assert quick.show_progress(lines, 17) == ["train_head: heads.linear: wrong\n"]
    printed = capsys.readouterr().out.splitlines()
    assert [line.split()[1:3] for line in printed] == [["1/17]", "data"], ["2/17]", "train_head@linear-1"]]
    assert all(line.endswith(" s") and len(line) <= 100 for line in printed)


@pytest.fixture
def fake_project(tmp_path, monkeypatch):
    """A project whose only stage writes the page, or fails, and a folder for temporary copies."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(quick.tempfile, "tempdir", str(tmp_path / "temporary"))
    (tmp_path / "params.yaml").write_bytes((ROOT / "params.yaml").read_bytes())
    (tmp_path / ".dvc").mkdir()
    (tmp_path / ".dvc/config").touch()

    def write(command):
        pages = [{str(quick.PAGE): {"cache": False}}]
        YAML().dump({"stages": {"report": {"cmd": command, "outs": pages}}}, tmp_path / "dvc.yaml")
        return tmp_path

    return write


def test_only_the_page_is_kept(fake_project, capsys):
    root = fake_project("mkdir -p reports && echo page > reports/report.html")
    quick.main([])
    assert quick.KEPT_PAGE.read_text() == "page\n"
    assert not list((root / "temporary").iterdir())
    printed = capsys.readouterr().out
    assert "[ 1/1] report" in printed
    assert str(quick.KEPT_PAGE) in printed.splitlines()[-1]


def test_a_failed_stage_shows_its_error_and_keeps_the_copy(fake_project, capsys):
    root = fake_project("echo report: a reason >&2; exit 2")
    with pytest.raises(InputError, match="which is kept"):
        quick.main([])
    assert "report: a reason" in capsys.readouterr().out
    assert len(list((root / "temporary").iterdir())) == 1
    assert not quick.KEPT_PAGE.exists()


def test_a_wrong_override_is_named_before_anything_runs(fake_project):
    root = fake_project("true")
    with pytest.raises(InputError, match="segmentation.epochs = 'two'"):
        quick.main(["segmentation.epochs=two"])
    assert not list((root / "temporary").iterdir())
