"""A pipeline that is killed goes on where it was, and ends in the bytes of one that was not."""

import os
import shutil
import signal
import time

OUTPUTS = (
    "data/objects/JPEGImages/star_1.jpg",
    "data/manifest.parquet",
    "data/models/segmentation/linear.safetensors",
    "data/models/classification/accumulated/last.safetensors",
    "data/models/classification/accumulated/best.safetensors",
    "data/predictions/classification/accumulated.parquet",
    "reports/runs/segmentation/linear.json",
    "reports/runs/classification/accumulated.json",
)
TARGETS = ("train_head@linear", "finetune@accumulated")


def kill_when(project, reached: str) -> None:
    """Run the targets until a file is there, then kill all of it."""
    process = project.start_repro(*TARGETS)
    deadline = time.monotonic() + 300
    while not (project.root / reached).exists() and process.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    assert process.poll() is None, "through before it could be killed"
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def test_a_pipeline_killed_twice_ends_in_the_same_bytes(clone_project):
    project = clone_project()
    kill_when(project, "data/scenes/JPEGImages/train_00003.jpg")
    kill_when(project, "data/resume/finetune/accumulated/state.pt")
    made = project.repro(*TARGETS)
    assert made.returncode == 0, made.stdout + made.stderr
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
    made = project.repro("-f", "-s", "data", "extract_segmentation", *TARGETS)
    assert made.returncode == 0, made.stdout + made.stderr
    assert {path: project.read(path) for path in OUTPUTS} == after
