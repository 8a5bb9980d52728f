"""A run: what was asked, what came out, epoch by epoch, as one record file.

The record is a stage's output and the truth; MLflow shows it (`stages/core/tracking.py`). It holds nothing that differs
between two runs of the same params, such as seconds or dates.
"""

import hashlib
import json
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

from stages.core.atomic import write_text
from stages.core.stage import InputError

RUNS = Path("reports/runs")


@dataclass(frozen=True)
class Run:
    """`history` has one dict an epoch, starting with `epoch` (from 1); values are numbers, or null where undefined.

    `stage` is the stage that made it; `artifacts` maps a word to the path of a file; `inputs` names what the run was
    made from (hashes); `versions` are those of the packages that decide its numbers.
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
        """Where the record lies."""
        return record_path(self.task, self.name)

    @property
    def identity(self) -> str:
        """SHA-256 of the record's content: the same run again has the same identity."""
        return hashlib.sha256(_dump(self).encode()).hexdigest()


def record_path(task: str, name: str) -> Path:
    """Where a run's record lies."""
    return RUNS / task / f"{name}.json"


def package_versions(*packages: str) -> dict[str, str]:
    """Installed versions, by package."""
    return {package: version(package) for package in packages}


def write_run(run: Run) -> None:
    """Write the record; raises `ValueError` for NaN or infinity, which JSON has not."""
    write_text(run.path, _dump(run))


def read_run(task: str, name: str) -> Run:
    """Read a record; raises `InputError` where it is missing or is none."""
    path = record_path(task, name)
    try:
        return Run(**json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        raise InputError(f"no run record at {path}; `dvc repro` makes it") from None
    except (ValueError, TypeError) as fault:
        raise InputError(f"{path} is no run record: {fault}") from fault


def _dump(run: Run) -> str:
    return json.dumps(asdict(run), indent=1, allow_nan=False) + "\n"
