"""A sweep on several machines: the loop of docs/experiments.md, run with clones in place of machines."""

import os
import re
import shutil
import stat

import pytest
from conftest import ROOT, Project
from ruamel.yaml import YAML

GUIDE = ROOT / "docs/experiments.md"
STAGES = {
    "features": {"cmd": "echo features > features.txt", "params": ["seed"], "outs": ["features.txt"]},
    "retrieval": {
        "cmd": "python retrieval.py",
        "deps": ["features.txt", "retrieval.py"],
        "params": ["retrieval.lr"],
        "outs": ["weights.txt"],
        "metrics": [{"reports/metrics.json": {"cache": False}}],
    },
}
PARAMS = {"seed": 1, "retrieval": {"lr": 0.001}}
RETRIEVAL = """
import json, os
from ruamel.yaml import YAML
lr = YAML(typ="safe").load(open("params.yaml"))["retrieval"]["lr"]
json.dump({"retrieval": {"scratch": {"r_at_1": 1e4 * lr}}}, open("reports/metrics.json", "w"))
open("weights.txt", "w").write(f"{lr} {open('features.txt').read()}")
os.system(os.environ.get("WHILE_TRAINING", "true"))
"""
# Takes a command's place on the `PATH`: a host is a folder.
SSH = '#!/bin/sh\ntest "$1" = -n && cd "$HOSTS/$2" && exec sh -c "$3"\n'


def read_commands(text: str) -> str:
    """The code block of the guide's section that contains `text`."""
    section = GUIDE.read_text().split("## Across machines\n")[1].split("\n## ")[0]
    (block,) = [block for block in re.findall(r"```bash\n(.*?)```", section, re.DOTALL) if text in block]
    return block


@pytest.fixture
def desk(tmp_path):
    """The clone of a small pipeline where a sweep starts; git remote and DVC remote have its finished baseline."""
    (tmp_path / "bin").mkdir()
    ssh = tmp_path / "bin/ssh"
    ssh.write_text(SSH)
    ssh.chmod(stat.S_IRWXU)
    desk = new_project(tmp_path, "desk")
    (desk.root / "docs").mkdir(parents=True)
    (desk.root / "reports").mkdir()
    shutil.copy(ROOT / "docs/sweep.sh", desk.root / "docs")
    YAML().dump({"stages": STAGES}, desk.root / "dvc.yaml")
    YAML().dump(PARAMS, desk.root / "params.yaml")
    (desk.root / "retrieval.py").write_text(RETRIEVAL)
    (desk.root / ".gitignore").write_text("/features.txt\n/weights.txt\n/sweep-*.log\n")
    shell(
        desk,
        f"""
        git init --quiet --bare --initial-branch=main {tmp_path}/origin.git
        git init --quiet --initial-branch=main
        git remote add origin {tmp_path}/origin.git
        dvc init --quiet
        dvc remote add --quiet --default shared {tmp_path}/store
        dvc repro --quiet
        git add --all
        git -c user.name=t -c user.email=t@t commit --quiet --message baseline
        dvc push --quiet
        git push --quiet origin main
        """,
    )
    return desk


def new_project(tmp_path, name):
    project = Project(tmp_path / name)
    project.environment |= {
        "PATH": f"{tmp_path / 'bin'}{os.pathsep}{project.environment['PATH']}",
        "HOSTS": str(tmp_path),
        "TMPDIR": str(tmp_path / "scratch"),
        "PYTHONPATH": str(ROOT),  # for `make compare`
        "HOME": str(tmp_path),  # no git identity, as on a node
    }
    (tmp_path / "scratch").mkdir(exist_ok=True)
    return project


def shell(project, script, code=0):
    """Run a script; return what it printed."""
    result = project.run("bash", "-euc", script)
    assert result.returncode == code, result.stdout + result.stderr
    return result.stdout + result.stderr


def test_experiments_of_two_machines_arrive_in_a_third_clone(desk, tmp_path):
    for host in ("gpu1", "gpu2"):
        shell(desk, f"git clone --quiet {tmp_path}/origin.git {tmp_path / host / 'vitlab'}")
    shell(desk, read_commands("ssh -n"))
    logs = [(desk.root / f"sweep-{index}.log").read_text() for index in (0, 1)]
    for log in logs:
        assert "Pulling data for stage: 'features'" in log, log  # not computed again
        assert "Running stage 'features'" not in log
        assert "Running stage 'retrieval'" in log
    assert not list((tmp_path / "scratch").iterdir())  # no clone is left

    third = new_project(tmp_path, "third")
    shell(desk, f"git clone --quiet {tmp_path}/origin.git {third.root}")
    collect = read_commands("dvc exp pull").replace("make compare", "python -m stages.compare")
    lines = [line.split() for line in shell(third, collect).splitlines()]
    assert ["lr-0"] in lines  # of `dvc exp list origin`
    assert ["lr-1"] in lines
    assert ["lr-0", "0.0003", "3.00", "-7.00"] in lines
    assert ["lr-1", "0.003", "30.00", "+20.00"] in lines
    shell(third, "dvc exp apply lr-1")
    assert third.read("weights.txt") == b"0.003 features\n"  # through the DVC remote
    assert b"lr: 0.003" in third.read("params.yaml")


def test_a_name_that_is_taken_is_refused_before_and_after_the_run(desk, tmp_path):
    """DVC's own push exits with 0 then, and the results are lost if their clone is removed."""
    commit = shell(desk, "git rev-parse HEAD").strip()
    run = "SLURM_ARRAY_TASK_ID=0 bash docs/sweep.sh lr retrieval.lr=3e-4 retrieval.lr=3e-3"
    # Another task of the same name is faster. Its commit is a sibling, as one experiment is not based on another.
    tree = shell(desk, "git rev-parse HEAD^{tree}").strip()
    other = shell(desk, f"git -c user.name=t -c user.email=t@t commit-tree -p HEAD -m other {tree}").strip()
    take_name = f"git push --quiet origin {other}:refs/exps/{commit[:2]}/{commit[2:]}/lr-0"
    desk.environment["WHILE_TRAINING"] = f"cd {desk.root} && {take_name}"
    assert "lr-0 was not pushed; it is in " in shell(desk, run, code=1)
    (clone,) = (tmp_path / "scratch").iterdir()
    assert (clone / "weights.txt").read_text() == "0.0003 features\n"
    assert "origin has an experiment lr-0; take another name" in shell(desk, run, code=1)
    assert list((tmp_path / "scratch").iterdir()) == [clone]  # the second one started nothing
