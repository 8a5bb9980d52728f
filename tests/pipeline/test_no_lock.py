"""Without `dvc.lock`, DVC knows of no finished stage: it must run the pipeline, but not hours of pretraining."""

import re
import shutil

import pytest
from conftest import ROOT, Project

PRETRAINING = {"pretrain", "pretrain_blip", "pretrain_catr"}


@pytest.fixture
def project(tmp_path):
    """The pipeline with its checkpoints and without a lock."""
    for name in ("stages", "data/checkpoints", "data/folder"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("dvc.yaml", "params.yaml", ".dvc/config"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    project = Project(tmp_path)
    project.run("git", "init", "-q")
    return project


def planned_stages(project):
    """The stages that `dvc repro` would run for the checkpoints, which depend on all pretraining stages."""
    result = project.repro("--dry", "checkpoints")
    assert result.returncode == 0, result.stderr
    return set(re.findall(r"Running stage '(.*)'", result.stdout))


def test_without_a_lock_nothing_is_pretrained(project):
    assert planned_stages(project) == {"checkpoints"}


def test_stages_that_are_not_frozen_would_be(project):
    """The dry run tells the truth: without `frozen`, it names the pretraining."""
    pipeline = project.root / "dvc.yaml"
    pipeline.write_text(pipeline.read_text().replace("frozen: true", "frozen: false"))
    assert planned_stages(project) == {"checkpoints", *PRETRAINING}
