"""A killed pipeline resumes, and ends with the same bytes as an undisturbed one."""

import os
import shutil
import signal
import time

OUTPUTS = (
    "data/objects/JPEGImages/star_1.jpg",
    "data/manifest.parquet",
    "data/models/segmentation/linear-seed1.safetensors",
    "data/models/classification/accumulated-seed1/last.safetensors",
    "data/models/classification/accumulated-seed1/best.safetensors",
    "data/predictions/classification/accumulated-seed1.parquet",
    "reports/runs/segmentation/linear-seed1.json",
    "reports/runs/classification/accumulated-seed1.json",
)
TARGETS = ("train_head@linear-1", "finetune@accumulated-1")


def kill_when(project, file: str) -> None:
    """Run the targets until `file` exists, then kill all processes."""
    process = project.start_repro(*TARGETS)
    deadline = time.monotonic() + 300
    while not (project.root / file).exists() and process.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    assert process.poll() is None, "finished before it could be killed"
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def test_a_pipeline_killed_twice_ends_in_the_same_bytes(clone_project):
    project = clone_project()
    kill_when(project, "data/scenes/JPEGImages/train_00003.jpg")
    kill_when(project, "data/resume/finetune/accumulated-seed1/state.pt")
    result = project.repro(*TARGETS)
    assert result.returncode == 0, result.stdout + result.stderr
    after = {path: project.read(path) for path in OUTPUTS}
    for folder in (
        ".dvc/cache",
        ".dvc/tmp",
        "data/models",
        "data/predictions",
        "data/features",
        "data/scenes",
        "data/objects",
    ):
        shutil.rmtree(project.root / folder)
    result = project.repro("-f", "-s", "data", "extract_segmentation", *TARGETS)
    assert result.returncode == 0, result.stdout + result.stderr
    assert {path: project.read(path) for path in OUTPUTS} == after
