"""dvc.yaml lists every param and module that a stage depends on."""

import ast
import re
from functools import cache
from itertools import product
from pathlib import Path

import pytest
from conftest import ROOT
from ruamel.yaml import YAML

from stages.params.section import read_params
from stages.report.section import PLOTS

PIPELINE = YAML(typ="safe").load((ROOT / "dvc.yaml").read_text())
PARAMS = read_params(ROOT / "params.yaml")


def instances():
    """Every stage as (name, definition), one per combination of its `matrix`, with `${...}` filled in."""
    for name, stage in PIPELINE["stages"].items():
        matrix = {
            axis: lookup(re.fullmatch(r"\$\{(.*)\}", values)[1]) for axis, values in stage.get("matrix", {}).items()
        }
        for combination in product(*matrix.values()):
            suffix = "-".join(str(value) for value in combination)
            item = dict(zip(matrix, combination, strict=True))
            yield f"{name}@{suffix}" if suffix else name, fill(stage, item)


def fill(value, item):
    if isinstance(value, dict):
        return {fill(k, item): fill(v, item) for k, v in value.items()}
    if isinstance(value, list):
        return [fill(v, item) for v in value]
    if isinstance(value, str):
        return re.sub(r"\$\{(.*?)\}", lambda m: str(lookup(m[1], PARAMS | {"item": item})), value)
    return value


def lookup(path, params=PARAMS):
    """The value at a path like `a.b` or `a.b[0]`."""
    value = params
    for key, index in re.findall(r"([\w-]+)(?:\[(\d+)\])?", path):
        value = value[key][int(index)] if index else value[key]
    return value


def direct_imports(module: Path) -> set[Path]:
    """Files of this project that a module names in its import statements, packages' `__init__` included."""
    imported = set()
    for node in ast.walk(ast.parse(module.read_text())):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        imported |= {path for name in names if name.split(".")[0] == "stages" for path in files(name)}
    return imported


@cache
def imports(module: Path) -> frozenset[Path]:
    """Files of this project that a module imports, itself and packages' `__init__` included, transitively."""
    visited: set[Path] = set()
    waiting = [module]
    while waiting:
        path = waiting.pop()
        if path not in visited:
            visited.add(path)
            waiting += direct_imports(path)
    return frozenset(visited)


def files(name):
    base = ROOT / name.replace(".", "/")
    return [path for path in (base.with_suffix(".py"), base / "__init__.py") if path.is_file()]


STAGES = dict(instances())
# A folder imports from the folders before it, never from those behind it.
ORDER = (
    "core",
    "params",
    "fetch",
    "data",
    "models",
    "pretraining",
    "features",
    "image_text",
    "segmentation",
    "captioning",
    "retrieval",
    "classification",
    "attention",
    "tracking",
    "report",
    "plan",
    "compare",
    "pipeline",
    "command",
)
# What a folder must not import although it comes before it. Tasks do not import each other, except that captioning
# and retrieval start from what `image_text` encoded, and `attention` looks into what the other tasks made.
FORBIDDEN = {
    "models": {"data"},
    "features": {"models", "pretraining"},
    "segmentation": {"image_text", "pretraining"},
    "captioning": {"segmentation", "pretraining"},
    "retrieval": {"segmentation", "captioning", "pretraining"},
    "classification": {"image_text", "segmentation", "captioning", "retrieval", "pretraining", "features"},
    "attention": {"segmentation", "retrieval", "pretraining"},
    "report": {"models", "features", "pretraining"},
}


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
        if path not in trivial and not any(path == folder or folder in path.parents for folder in covered)
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
            assert path in used or any(path in module.parents for module in used), (
                f"{name} does not import {dependency}"
            )


@pytest.mark.parametrize("module", sorted((ROOT / "stages").rglob("*.py")), ids=str)
def test_folders_import_in_order(module):
    folder, *inner = module.relative_to(ROOT / "stages").parts
    if not inner:
        assert folder == "__init__.py", "no module lies loose in stages/"
        return
    allowed = {*ORDER[: ORDER.index(folder) + 1]} - FORBIDDEN.get(folder, set())
    imported = {path.relative_to(ROOT / "stages").parts[0] for path in direct_imports(module)} - {"__init__.py"}
    assert imported <= allowed


def test_plots_are_of_files_that_the_report_writes():
    """Their templates exist, and each draws a file of its own or shares it."""
    assert str(PLOTS) in [next(iter(out)) if isinstance(out, dict) else out for out in STAGES["report"]["outs"]]
    for plot in PIPELINE["plots"]:
        ((_, definition),) = plot.items()
        assert (ROOT / ".dvc/plots" / f"{definition['template']}.json").is_file()
        for path, column in definition["y"].items():
            assert Path(path).parent == PLOTS
            assert {definition["x"], column} <= set((ROOT / path).read_text().splitlines()[0].split(","))


@pytest.mark.parametrize("name", PIPELINE["stages"])
def test_names_from_params_are_validated_and_quoted(name):
    """A name that is not validated could lead to any path, which DVC removes before the stage runs."""
    stage = PIPELINE["stages"][name]
    assert "${" not in stage["cmd"].removesuffix(" ${item}"), "DVC quotes for the shell only what comes from `${item}`"
    if "${" in f"{stage['cmd']} {stage['outs']}":
        (valid_params,) = PIPELINE["stages"]["check_params"]["outs"]
        assert valid_params in stage["deps"]


@pytest.mark.parametrize("name", ["pretrain", "pretrain_blip", "pretrain_catr"])
def test_pretraining_is_frozen(name):
    """A fresh clone must not train the shipped checkpoints again."""
    assert STAGES[name]["frozen"] is True


@pytest.mark.parametrize("name", PIPELINE["artifacts"])
def test_every_artifact_is_the_output_of_a_stage(name):
    """DVC does not check it: it finds out when somebody downloads the artifact."""
    outputs = set()
    for stage in STAGES.values():
        outputs |= {next(iter(out)) if isinstance(out, dict) else out for out in stage["outs"]}
    assert fill(PIPELINE["artifacts"][name], {})["path"] in outputs
