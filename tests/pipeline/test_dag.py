"""dvc.yaml names every param and every module that a stage hangs on."""

import ast
import re
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest
from conftest import ROOT
from ruamel.yaml import YAML

from stages.params.section import read

PIPELINE = YAML(typ="safe").load((ROOT / "dvc.yaml").read_text())
PARAMS = read(ROOT / "params.yaml")


def instances():
    """Every stage as (name, definition), one an item for `foreach`, with `${...}` filled in."""
    for name, stage in PIPELINE["stages"].items():
        if "foreach" not in stage:
            yield name, fill(stage)
            continue
        for key in lookup(re.fullmatch(r"\$\{(.*)\}", stage["foreach"])[1]):
            yield f"{name}@{key}", fill(stage["do"], key)


def fill(value, key=None):
    if isinstance(value, dict):
        return {fill(k, key): fill(v, key) for k, v in value.items()}
    if isinstance(value, list):
        return [fill(v, key) for v in value]
    if isinstance(value, str):
        return re.sub(r"\$\{(.*?)\}", lambda m: key if m[1] == "key" else str(lookup(m[1])), value)
    return value


def lookup(path):
    value = PARAMS
    for part in path.split("."):
        value = value[part]
    return value


@cache
def imports(module: Path) -> frozenset[Path]:
    """Files of this project that a module imports, itself and packages' `__init__` included, transitively."""
    found, waiting = set(), [module]
    while waiting:
        path = waiting.pop()
        if path in found:
            continue
        found.add(path)
        for node in ast.walk(ast.parse(path.read_text())):
            names = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.module:
                names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
            for name in names:
                if name.split(".")[0] == "stages":
                    waiting += [file for file in files(name) if file not in found]
    return frozenset(found)


def files(name):
    base = ROOT / name.replace(".", "/")
    return [path for path in (base.with_suffix(".py"), base / "__init__.py") if path.is_file()]


STAGES = dict(instances())
SHARED = {
    *(
        "__init__.py",
        "absence.py",
        "archive.py",
        "batches.py",
        "bootstrap.py",
        "download.py",
        "features.py",
        "figures.py",
    ),
    *(
        "loading.py",
        "remote.py",
        "runs.py",
        "shards.py",
        "source.py",
        "stage.py",
        "vectors.py",
        "views.py",
        "voc.py",
        "writing.py",
    ),
}
TASKS = {"segmentation", "captioning", "retrieval", "classification"}


@pytest.mark.parametrize("name", STAGES)
def test_every_param_exists(name):
    for key in STAGES[name].get("params", []):
        lookup(key)


@pytest.mark.parametrize("name", STAGES)
def test_every_imported_module_is_a_dependency(name):
    stage = STAGES[name]
    covered = [ROOT / dependency for dependency in stage["deps"]]
    trivial = {path for path in ROOT.glob("stages/**/__init__.py") if docstring_only(path)}
    missing = [
        path
        for path in imports(entry(stage))
        if path not in trivial and not any(path == one or one in path.parents for one in covered)
    ]
    assert not missing, f"{name} imports {[str(path.relative_to(ROOT)) for path in missing]}"


def entry(stage):
    """The file that `python -m MODULE` runs."""
    module = stage["cmd"].split()[2]
    return next(iter(path for path in files(f"{module}.__main__") + files(module)))


def docstring_only(path):
    return all(isinstance(node, ast.Expr) for node in ast.parse(path.read_text()).body)


@pytest.mark.parametrize("name", STAGES)
def test_no_dependency_on_code_that_is_not_imported(name):
    used = imports(entry(STAGES[name]))
    for dependency in STAGES[name]["deps"]:
        path = ROOT / dependency
        if dependency.startswith("stages"):
            assert path in used or any(path in one.parents for one in used), f"{name} does not import {dependency}"


def test_rooms_import_from_above_only():
    """house.md's order: task rooms never import each other, models know no params' experiment, data knows no models."""
    for module in (ROOT / "stages").rglob("*.py"):
        room = module.relative_to(ROOT / "stages").parts[0]
        reached = {path.relative_to(ROOT / "stages").parts[0] for path in imports(module)}
        if room in SHARED:
            assert reached <= SHARED, module
        if room == "data":
            assert not reached & (
                TASKS | {"attention", "backbones", "checkpoints", "report", "tracking.py", "features.py"}
            ), module
        if room == "backbones":
            assert not reached & (TASKS | {"attention", "checkpoints", "report", "tracking.py", "features.py"}), module
            assert ROOT / "stages/params/experiment.py" not in imports(module), module
        if room == "checkpoints":
            assert not reached & (TASKS | {"attention", "image_text", "report", "tracking.py", "features.py"}), module
        if room in TASKS:
            assert not reached & (TASKS - {room} | {"attention", "report"}), module
        if room == "attention":
            assert "report" not in reached, module
        if room == "image_text":
            assert not reached & (TASKS | {"report", "tracking.py"}), module
        if room == "report":
            assert not reached & {"backbones", "features.py"}, module


def test_curves_in_plots_are_those_of_the_heads():
    (curves,) = [plot for entry in PIPELINE["plots"] if isinstance(entry, dict) for plot in entry.values()]
    assert {Path(path).stem for path in curves["y"]} <= set(PARAMS["segmentation"]["heads"])


def test_the_shipped_checkpoints_are_the_committed_recipes():
    """A fresh clone must skip pretraining: the lock knows the code, the params and the checkpoints as they are."""
    dvc = Path(sys.executable).with_name("dvc")
    told = subprocess.run([dvc, "status", "pretrain", "pretrain_blip"], cwd=ROOT, capture_output=True, text=True)
    assert "up to date" in told.stdout, told.stdout + told.stderr
