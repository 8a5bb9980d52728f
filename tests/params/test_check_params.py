"""Names in params.yaml reach no shell and no path before they are validated."""

import re
import shutil
import subprocess
import sys

import pytest
from conftest import ROOT, Project
from ruamel.yaml import YAML

from stages.params.__main__ import OUTPUT

STAGE = "finetune"


@pytest.fixture
def project(tmp_path):
    """The pipeline's first stage and one with a matrix, whose inputs and code are empty files: it only fails."""
    pipeline = YAML(typ="safe").load((ROOT / "dvc.yaml").read_text())
    pipeline["stages"] = {name: pipeline["stages"][name] for name in ("check_params", STAGE)}
    YAML().dump({"stages": pipeline["stages"]}, tmp_path / "dvc.yaml")
    for name in ("params.yaml", ".dvcignore"):
        shutil.copy(ROOT / name, tmp_path / name)
    for name in ("core", "params"):
        shutil.copytree(ROOT / "stages" / name, tmp_path / "stages" / name)
    for path in pipeline["stages"][STAGE]["deps"]:
        if not (tmp_path / path).exists():
            (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / path).write_text("")
    (tmp_path / "data/folder").mkdir()
    (tmp_path / "data/folder/image.jpg").write_text("")
    (tmp_path / ".dvc").mkdir()
    (tmp_path / ".dvc/config").write_text("[core]\n    no_scm = true\n")
    return Project(tmp_path)


def stages_run(result: subprocess.CompletedProcess) -> list[str]:
    return re.findall(r"^Running stage '(.*?)'", result.stdout, re.MULTILINE)


# Each would run `touch F` if it were part of a command line.
NAMES = [
    "x; touch F",
    "$(touch F)",
    "`touch F`",
    "x' ; touch F; '",
    'x" ; touch F; "',
    "a\ntouch F\n",
    "x\\'; touch F #",
]


def test_a_name_is_never_part_of_a_command(project):
    project.set(classification__settings={name: {} for name in NAMES})
    # Only these stages, without those before them.
    result = project.run("dvc", "repro", "--single-item", "--keep-going", STAGE)
    assert result.returncode != 0
    assert not (project.root / "F").exists()


def test_nothing_else_runs_or_is_removed_when_params_are_invalid(project):
    project.set(classification__settings={"base": {}}, classification__seeds=["1/../../../../data/folder"])
    result = project.run("dvc", "repro", "--keep-going")
    assert result.returncode != 0
    assert stages_run(result) == ["check_params"], result.stderr
    assert (project.root / "data/folder/image.jpg").exists()


def test_the_check_runs_again_for_every_change_with_the_same_output(project):
    assert stages_run(project.run("dvc", "repro", "check_params")) == ["check_params"]
    output = project.read(str(OUTPUT))
    project.set(retrieval__lr=0.5)
    assert stages_run(project.run("dvc", "repro", "check_params")) == ["check_params"]
    assert project.read(str(OUTPUT)) == output


def test_the_command_prints_one_line(tmp_path):
    def run() -> subprocess.CompletedProcess:
        command = [sys.executable, "-m", "stages.params"]
        return subprocess.run(command, cwd=tmp_path, env={"PYTHONPATH": str(ROOT)}, capture_output=True, text=True)

    shutil.copy(ROOT / "params.yaml", tmp_path)
    result = run()
    assert (result.returncode, result.stdout, result.stderr) == (0, "params.yaml is valid\n", "")
    (tmp_path / "params.yaml").write_text('"a\\nb": 1')
    result = run()
    assert (result.returncode, result.stdout, result.stderr.count("\n")) == (2, "", 1)
    assert result.stderr.startswith("check_params: params.yaml is not valid YAML: line 1, column 1: ")
