"""Run the whole pipeline on a few dozen images, in a temporary copy of the project: `make quick`.

The copy has the code and params as they are now, shrunk as `small_params.py` says. Only the page is kept.

make quick
make quick SET="segmentation.epochs=5 'captioning.cells.mine={type: greedy, prompt: a picture of}'"
"""

import argparse
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from stages.core.stage import InputError, stage
from stages.params.experiment import Experiment
from stages.params.section import PARAMS, read_params, validate_params
from stages.pipeline.small_params import shrink
from stages.pipeline.stage_names import read_pipeline, stage_names
from stages.pipeline.workspace import clean_environment, copy_pipeline

PAGE = Path("reports/report.html")
KEPT_PAGE = Path("reports/quick/report.html")
RUNNING = "Running stage '"  # DVC's line `Running stage 'NAME':`
LAST_LINES = 20  # of a failed stage's output; a traceback through our code and a library's fits


def show_progress(lines: Iterable[str], total: int) -> list[str]:
    """Print a line per stage with its seconds while `dvc repro` prints `lines`; returns the last stage's own output."""
    count = 0
    start = time.perf_counter()
    output: list[str] = []
    for line in lines:
        if not line.startswith(RUNNING):
            output.append(line)
            continue
        if count:
            _end_stage(start)
        count += 1
        start = time.perf_counter()
        output = []
        name = line.removeprefix(RUNNING).split("'")[0]
        print(f"[{count:2}/{total}] {name:40}", end="", flush=True)
    if count:
        _end_stage(start)
    return output


def _end_stage(start: float) -> None:
    print(f"{time.perf_counter() - start:7.1f} s", flush=True)


def run_pipeline(workspace: Path, total: int) -> None:
    """Run `dvc repro` in the workspace. If it fails, prints the end of its output and raises `InputError`."""
    environment = clean_environment() | {"PYTHONUNBUFFERED": "1"}  # lines arrive when they are printed
    with subprocess.Popen(
        ["dvc", "repro"],
        cwd=workspace,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        encoding="utf-8",
        errors="replace",
    ) as process:
        assert process.stdout is not None
        output = show_progress(process.stdout, total)
    if process.returncode:
        print("".join(output[-LAST_LINES:]).strip())
        raise InputError(f"`dvc repro` failed in {workspace}, which is kept")


def load_small_params(overrides: list[str]) -> dict[str, Any]:
    """The content of `params.yaml`, shrunk and with overrides. Raises `InputError` if it is not valid."""
    params = read_params()
    shrink(params, overrides)
    validate_params(Experiment, params)
    return params


def main(overrides: list[str]) -> None:
    start = time.perf_counter()
    params = load_small_params(overrides)
    workspace = Path(tempfile.mkdtemp(prefix="vitlab-quick-"))
    print(f"The whole pipeline on a few dozen images, in {workspace}; its numbers mean nothing.", flush=True)
    try:
        copy_pipeline(Path.cwd(), workspace)
        YAML().dump(params, workspace / PARAMS)
        run_pipeline(workspace, len(stage_names(read_pipeline(), params)))
    except KeyboardInterrupt:
        shutil.rmtree(workspace, ignore_errors=True)
        raise InputError("interrupted") from None
    KEPT_PAGE.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(workspace / PAGE, KEPT_PAGE)
    shutil.rmtree(workspace)
    print(f"All stages ran in {time.perf_counter() - start:.0f} s. Open {KEPT_PAGE} in a browser.")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="params to change, as with dvc exp run -S")
    arguments = parser.parse_args()
    with stage("quick", record=False):
        main(arguments.overrides)
