"""A run: its params, metrics and per-epoch history in one record file.

The record is an output of its stage and the source of truth; MLflow displays it (`stages/tracking`). It
contains nothing that differs between two runs with the same params, such as durations or dates.
"""

import hashlib
import json
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

from stages.core.atomic import write_text
from stages.core.messages import join_names
from stages.core.skipped import skip_reason
from stages.core.stage import InputError

RUNS = Path("reports/runs")


@dataclass(frozen=True)
class Run:
    """One training, evaluation or decoding.

    `seed` is that of a run that is repeated with several; None for a run without randomness of its own. `metrics` are
    final numbers by name, as MLflow holds them; `details` are results that are not single numbers, such as a confusion
    matrix. `history` has one dict per epoch, starting with `epoch` (from 1); values are numbers, or null if undefined.
    `stage` is the name of the stage in `dvc.yaml`; `inputs` identifies the data and weights (hashes); `artifacts` are
    paths of files by name; `versions` are those of the packages that affect the numbers.
    """

    task: str
    name: str
    stage: str
    params: dict[str, Any]
    metrics: dict[str, float]
    history: list[dict[str, Any]] = field(default_factory=list)
    inputs: dict[str, Any] = field(default_factory=dict)
    artifacts: dict[str, str] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)
    details: dict[str, Any] = field(default_factory=dict)
    seed: int | None = None

    @property
    def key(self) -> str:
        """The run's name and seed."""
        return run_key(self.name, self.seed)

    @property
    def path(self) -> Path:
        """The path of the record file."""
        return record_path(self.task, self.key)

    @property
    def identity(self) -> str:
        """SHA-256 of the record's content: a repeated run has the same identity."""
        return hashlib.sha256(_to_json(self).encode()).hexdigest()


def run_key(name: str, seed: int | None = None) -> str:
    """Name and seed of a run in one word, which names its files: `linear-seed1`; the name alone without a seed."""
    return name if seed is None else f"{name}-seed{seed}"


def record_path(task: str, key: str) -> Path:
    """The path of a run's record file; `key` is that of `run_key`."""
    return RUNS / task / f"{key}.json"


def package_versions(*packages: str) -> dict[str, str]:
    """Installed versions by package."""
    return {package: version(package) for package in packages}


def write_run(run: Run) -> None:
    """Write a run's record. Raises `ValueError` for NaN and infinity, which JSON cannot hold."""
    write_text(run.path, _to_json(run))


def read_run(task: str, key: str) -> Run:
    """Read a run's record. Raises `InputError` if it is missing or invalid, or if its stage was skipped."""
    path = record_path(task, key)
    reason = skip_reason(path)
    if reason:
        raise InputError(f"{path}: the run was skipped: {reason}")
    try:
        run = Run(**json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        raise InputError(f"no run record at {path}; run `dvc repro` to create it") from None
    except (ValueError, TypeError) as error:
        raise InputError(f"{path} is not a run record: {error}") from error
    for name, value in run.metrics.items():
        if not isinstance(value, int | float):
            raise InputError(f"{path} is not a run record of this version: metric {name} is no number; run `dvc repro`")
    return run


def best_run(task: str, kind: str, trained: dict[str, str], name: str | None, metric: str) -> str:
    """The key of the run of `name`, or of all runs if `name` is None, with the highest metric.

    `trained` has the names of the runs by key, and `kind` says what they name, for the `InputError` that lists them.
    """
    candidates = [key for key, run_name in trained.items() if name in (None, run_name)]
    if not candidates:
        names = join_names(list(dict.fromkeys(trained.values())))
        raise InputError(f"no {kind} '{name}'; trained {kind}s: {names}")
    return max(candidates, key=lambda key: read_run(task, key).metrics[metric])


def _to_json(run: Run) -> str:
    return json.dumps(asdict(run), indent=1, allow_nan=False) + "\n"
