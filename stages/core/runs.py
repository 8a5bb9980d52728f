"""A run: its params, metrics and per-epoch history in one record file.

The record is an output of its stage and the source of truth; MLflow displays it (`stages/core/tracking.py`). It
contains nothing that differs between two runs with the same params, such as durations or dates.
"""

import hashlib
import json
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

from stages.core.atomic import write_text
from stages.core.skipped import skip_reason
from stages.core.stage import InputError

RUNS = Path("reports/runs")


@dataclass(frozen=True)
class Run:
    """`history` has one dict per epoch, starting with `epoch` (from 1); values are numbers, or null if undefined.

    `stage` is the name of the stage in `dvc.yaml`; `inputs` identifies the data and weights (hashes); `artifacts` are
    paths of files by name; `versions` are those of the packages that affect the numbers.
    """

    task: str
    name: str
    stage: str
    params: dict[str, Any]
    metrics: dict[str, Any]
    history: list[dict[str, Any]] = field(default_factory=list)
    inputs: dict[str, Any] = field(default_factory=dict)
    artifacts: dict[str, str] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)

    @property
    def path(self) -> Path:
        """The path of the record file."""
        return record_path(self.task, self.name)

    @property
    def identity(self) -> str:
        """SHA-256 of the record's content: a repeated run has the same identity."""
        return hashlib.sha256(_to_json(self).encode()).hexdigest()


def record_path(task: str, name: str) -> Path:
    """The path of a run's record file."""
    return RUNS / task / f"{name}.json"


def package_versions(*packages: str) -> dict[str, str]:
    """Installed versions by package."""
    return {package: version(package) for package in packages}


def write_run(run: Run) -> None:
    """Write a run's record. Raises `ValueError` for NaN and infinity, which JSON cannot hold."""
    write_text(run.path, _to_json(run))


def read_run(task: str, name: str) -> Run:
    """Read a run's record. Raises `InputError` if it is missing or invalid, or if its stage was skipped."""
    path = record_path(task, name)
    reason = skip_reason(path)
    if reason:
        raise InputError(f"{path}: the run was skipped: {reason}")
    try:
        return Run(**json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        raise InputError(f"no run record at {path}; run `dvc repro` to create it") from None
    except (ValueError, TypeError) as error:
        raise InputError(f"{path} is not a run record: {error}") from error


def _to_json(run: Run) -> str:
    return json.dumps(asdict(run), indent=1, allow_nan=False) + "\n"
