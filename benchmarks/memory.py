"""Measure the peak memory of every stage of the embedded pipeline with its data at 1x and at 4x.

    python -m benchmarks.memory              250, then 1000 images per split: at most 10 minutes on 2 cores
    python -m benchmarks.memory --base 1000  the committed size, then four times as much

Runs the stages by hand, one after the other, in a temporary copy of the project. Params keep the computation small (one
or two epochs, one seed, two heads, two cells, one grid row); only the number of images differs between the two passes:
`embedded.train`, `val`, `objects_train` and `objects_val`.

Two peaks, in MB of 10^6 bytes:

- tree: the sum of the resident memory of a stage's process and its children, sampled every 50 ms. Pages that processes
  share are counted in each.
- process: the largest process alone, as the system recorded it (`ru_maxrss`), so that no peak falls between samples.

About 400 MB of either are torch's and its libraries', which hides growth in percent. So growth is given in MB as well,
and per added image. `files` is the growth of pages that are mapped from files, such as feature tables: the system drops
them when memory is short. A stage is flat if its process grows by at most 10 %.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import psutil
from ruamel.yaml import YAML

from stages.report.tables import Table

ROOT = Path(__file__).resolve().parent.parent
COPIED = ("stages", "dvc.yaml", "params.yaml", "data/checkpoints", "data/folder")
FACTOR = 4
SPLITS = 2  # of images: train and val
INTERVAL = 0.05  # seconds between samples
FLAT = 0.10

CELLS = {
    "greedy": {"type": "greedy", "prompt": "a picture of"},
    "k50_t07": {"type": "top_k", "k": 50, "temperature": 0.7, "prompt": "a picture of"},
}
GRID = {"row": {"init": "scratch", "lr": 0.001, "weight_decay": 0, "temperature": 0.1, "epochs": 2}}
SETTING = {"lr": "base", "augment": False, "size": "base", "batch_size": 8, "accumulate": 1, "epochs": 1}
SMALL_PARAMS: dict[str, Any] = {
    "profile": "embedded",
    "embedded.classifier.float64": False,
    "embedded.examples": {"class_token": 3, "captions": 3},
    "compute.live": False,  # MLflow's own 200 MB would hide the stage
    "segmentation.views": 2,
    "segmentation.epochs": 2,
    "segmentation.seeds": [1],
    "segmentation.heads": {"linear": {"kind": "linear"}, "transformer": {"kind": "transformer", "shared_qk": False}},
    "captioning.seeds": [1],
    "captioning.cells": CELLS,
    "retrieval.views": 2,
    "retrieval.epochs": 2,
    "retrieval.seeds": [1],
    "retrieval.finetune": {"lr": 1e-5, "weight_decay": 0, "temperature": 0.1, "epochs": 1, "batch_size": 16},
    "retrieval.grid": {name: {**row, "batch_size": 16} for name, row in GRID.items()},
    "classification.seeds": [1],
    "classification.settings": {"base": SETTING},
}
# Runs a command and writes what the system recorded of it to a file. A process of its own, as small as Python can be:
# Linux starts a child's `ru_maxrss` at the memory of the process that forked it.
RECORDER = """
import os, subprocess, sys
process = subprocess.Popen(sys.argv[2:])
_, status, usage = os.wait4(process.pid, 0)
with open(sys.argv[1], "w") as file:
    file.write(str(usage.ru_maxrss))
sys.exit(os.waitstatus_to_exitcode(status))
"""
# What a stage holds in memory, printed where it is not flat. Every stage also holds the rows of the manifest: 3.1 kB
# per image with five captions.
FORMULAS = {
    "data": "manifest rows of both splits",
    "train_head": "train images x cached views x (tokens x dim x 2 + crop^2) bytes; val images x classes^2 x 16 bytes",
    "encode_image_text": "train images x views x dim x 4 bytes of vectors",
    "caption": "captions x about 400 bytes of token IDs",
    "train_retrieval": "train images x views x dim x 6 bytes",
    "train_retrieval_grid": "train images x views x dim x 6 bytes",
    "report": "val images x (1000 draws x 8 x 3 + classes^2 x 16) bytes; up to 1000 images of the page",
}


@dataclass(frozen=True)
class Peak:
    """Peak memory in bytes: of the process tree, of its pages that are mapped or shared, and of the largest process."""

    tree: int
    files: int
    process: int


def copy_project(folder: Path) -> None:
    """Copy what the stages need."""
    for name in COPIED:
        source = ROOT / name
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if source.is_dir():
            shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, target)


def set_params(folder: Path, images: int) -> None:
    """Write the params of one pass, with `images` per split."""
    yaml = YAML()
    params = yaml.load(folder / "params.yaml")
    counts = {f"embedded.{name}": images for name in ("train", "val", "objects_train", "objects_val")}
    for key, value in (SMALL_PARAMS | counts).items():
        *sections, last = key.split(".")
        section = params
        for name in sections:
            section = section[name]
        section[last] = value
    yaml.dump(params, folder / "params.yaml")


def stage_commands(folder: Path) -> dict[str, list[str]]:
    """The command of every stage that `dvc repro` runs, in the order of `dvc.yaml`, in which no stage precedes its
    inputs."""
    yaml = YAML(typ="safe")
    pipeline = yaml.load(folder / "dvc.yaml")
    params = yaml.load(folder / "params.yaml")
    commands = {}
    for name, stage in pipeline["stages"].items():
        if stage.get("frozen"):
            continue
        command = [sys.executable, *stage["cmd"].split()[1:]]
        if "matrix" not in stage:
            commands[name] = command
            continue
        axes = stage["matrix"]
        values = [_param(params, reference) for reference in axes.values()]
        for combination in product(*values):
            options = [
                part for axis, value in zip(axes, combination, strict=True) for part in (f"--{axis}", str(value))
            ]
            commands[f"{name}@{'-'.join(map(str, combination))}"] = [*command[:-1], *options]
    return commands


def _param(params: dict[str, Any], reference: str) -> Any:
    """The value of a reference such as `${segmentation.heads}`."""
    value: Any = params
    for name in reference.removeprefix("${").removesuffix("}").split("."):
        value = value[name]
    return value


def measure_stage(command: list[str], folder: Path) -> Peak:
    """Run a command in `folder`. Raises `RuntimeError` with its output if it fails."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("DVC_", "MLFLOW_"))}
    tree = files = 0
    with tempfile.TemporaryFile("w+") as output, tempfile.NamedTemporaryFile("r") as record:
        recorded = [sys.executable, "-S", "-c", RECORDER, record.name, *command]
        process = subprocess.Popen(recorded, cwd=folder, env=environment, stdout=output, stderr=subprocess.STDOUT)
        recorder = psutil.Process(process.pid)
        while process.poll() is None:
            resident, mapped = sample_children(recorder)
            tree = max(tree, resident)
            files = max(files, mapped)
            time.sleep(INTERVAL)
        if process.returncode:
            output.seek(0)
            raise RuntimeError(f"{' '.join(command)} failed:\n{output.read()}")
        return Peak(tree, files, 1024 * int(record.read()))  # Linux counts in KiB


def sample_children(recorder: psutil.Process) -> tuple[int, int]:
    """Resident bytes of all processes below `recorder` now, and those of them that are mapped from files or shared."""
    resident = mapped = 0
    try:
        for process in recorder.children(recursive=True):
            memory = process.memory_info()
            resident += memory.rss
            mapped += memory.shared
    except psutil.NoSuchProcess:  # one has just ended: the next sample counts the others
        return 0, 0
    return resident, mapped


def measure_pass(images: int) -> dict[str, Peak]:
    """The peaks of all stages with `images` per split."""
    peaks = {}
    with tempfile.TemporaryDirectory(prefix="vitlab-memory-") as name:
        folder = Path(name)
        copy_project(folder)
        set_params(folder, images)
        for stage, command in stage_commands(folder).items():
            start = time.perf_counter()
            peaks[stage] = measure_stage(command, folder)
            seconds = time.perf_counter() - start
            megabytes = peaks[stage].process / 1e6
            print(f"{images} images, {stage}: {megabytes:.0f} MB in {seconds:.0f} s", file=sys.stderr, flush=True)
    return peaks


def is_flat(small: Peak, large: Peak) -> bool:
    """Whether the largest process, whose peak is exact, grows by at most `FLAT`."""
    return large.process <= (1 + FLAT) * small.process


def memory_table(small: dict[str, Peak], large: dict[str, Peak], base: int) -> Table:
    """One row per stage."""
    added = SPLITS * (FACTOR - 1) * base
    rows = []
    for stage, before in small.items():
        after = large[stage]
        growth = after.process - before.process
        verdict = "flat" if is_flat(before, after) else FORMULAS.get(stage.split("@")[0], "not flat")
        rows.append(
            (
                stage,
                f"{before.tree / 1e6:.0f}",
                f"{after.tree / 1e6:.0f}",
                f"{before.process / 1e6:.0f}",
                f"{after.process / 1e6:.0f}",
                f"{growth / 1e6:+.0f}",
                f"{growth / before.process:+.1%}",
                f"{(after.files - before.files) / 1e6:+.0f}",
                f"{growth / added / 1e3:+.1f}",
                verdict,
            )
        )
    columns = (
        "Stage",
        "tree 1x",
        f"tree {FACTOR}x",
        "process 1x",
        f"process {FACTOR}x",
        "growth",
        "growth %",
        "files",
        "kB per image",
        "",
    )
    title = f"Peak memory in MB, {base} and {FACTOR * base} images per split"
    return Table.from_rows(title, columns, rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", type=int, default=250, help="images per split at 1x (250)")
    arguments = parser.parse_args()
    small, large = (measure_pass(factor * arguments.base) for factor in (1, FACTOR))
    print(memory_table(small, large, arguments.base).markdown())


if __name__ == "__main__":
    main()
