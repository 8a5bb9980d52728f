"""The memory benchmark runs every stage, measures children, and computes growth from the two passes."""

import sys

import pytest
from conftest import ROOT
from ruamel.yaml import YAML

from benchmarks import memory
from benchmarks.memory import Peak, is_flat, measure_stage, memory_table, stage_commands
from stages.params.experiment import Experiment
from stages.params.section import read_params, validate_params

MB = 1_000_000


@pytest.fixture
def project(tmp_path):
    for name in ("dvc.yaml", "params.yaml"):
        (tmp_path / name).write_text((ROOT / name).read_text())
    return tmp_path


def test_every_stage_is_measured_after_its_inputs(project):
    memory.set_params(project, 12)
    commands = stage_commands(project)
    stages = YAML(typ="safe").load((ROOT / "dvc.yaml").read_text())["stages"]
    expected = [name for name, stage in stages.items() if not stage.get("frozen")]
    assert list(dict.fromkeys(name.split("@")[0] for name in commands)) == expected
    assert commands["train_head@transformer-1"][1:] == [
        *("-m", "stages.segmentation.train_head", "--head", "transformer", "--seed", "1")
    ]
    # No stage precedes one whose output it reads.
    outputs = {}
    for position, name in enumerate(expected):
        for output in stages[name]["outs"]:
            outputs[output if isinstance(output, str) else next(iter(output))] = position
    for position, name in enumerate(expected):
        assert not [dep for dep in stages[name]["deps"] if outputs.get(dep, -1) >= position], name


def test_the_params_of_a_pass_are_valid(project):
    memory.set_params(project, 12)
    experiment = validate_params(Experiment, read_params(project / "params.yaml"))
    assert (experiment.embedded.train, experiment.embedded.objects_val) == (12, 12)


def test_a_childs_memory_counts(tmp_path):
    # The child touches 200 MB, the parent next to nothing; both are measured.
    child = "import time; block = b'x' * 200_000_000; time.sleep(1)"
    code = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}], check=True)"
    peak = measure_stage([sys.executable, "-c", code], tmp_path)
    assert 200 * MB < peak.process < 300 * MB
    assert peak.tree > peak.process  # the parent and the child together


def test_a_failed_stage_shows_its_output(tmp_path):
    with pytest.raises(RuntimeError, match="no such image"):
        measure_stage([sys.executable, "-c", "raise SystemExit('no such image')"], tmp_path)


def test_growth_by_hand(monkeypatch):
    monkeypatch.setattr(memory, "FORMULAS", {"report": "1 kB per image"})
    small = {"data": Peak(1000 * MB, 10 * MB, 500 * MB), "report": Peak(400 * MB, 0, 400 * MB)}
    large = {"data": Peak(1200 * MB, 40 * MB, 550 * MB), "report": Peak(600 * MB, 0, 460 * MB)}
    assert is_flat(small["data"], large["data"])  # exactly 10 %
    assert not is_flat(small["report"], large["report"])
    frame = memory_table(small, large, base=100).frame
    # 3 x 100 images per split are added, 600 in all: 50 MB / 600 = 83.3 kB.
    assert frame.iloc[0].tolist() == ["data", "1000", "1200", "500", "550", "+50", "+10.0%", "+30", "+83.3", "flat"]
    assert frame.iloc[1].tolist()[5:] == ["+60", "+15.0%", "+0", "+100.0", "1 kB per image"]
