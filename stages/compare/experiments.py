"""Experiments as `dvc exp show --json` lists them: state, params and headline metrics."""

import json
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from stages.core.stage import InputError

Keys = tuple[str, ...]  # of nested sections, such as ("segmentation", "lr")
SUCCESS = "success"


@dataclass(frozen=True)
class Experiment:
    """An experiment, a commit or the workspace. `state` is DVC's: success, failed, queued or running.

    An experiment that has not finished has no metrics: those that DVC lists for it are still the baseline's.
    """

    name: str
    state: str
    params: dict[Keys, Any]
    metrics: dict[Keys, float]


def load_experiments() -> tuple[Experiment, list[Experiment]]:
    """The last commit, and its experiments; the workspace is one of them if it differs from all of these.

    Raises `InputError` with DVC's message if DVC cannot list them, as without a Git repository.
    """
    result = subprocess.run(["dvc", "exp", "show", "--json"], capture_output=True, text=True, check=False)
    if result.returncode:
        raise InputError(result.stderr.strip())
    return parse_experiments(json.loads(result.stdout))


def parse_experiments(revisions: list[dict]) -> tuple[Experiment, list[Experiment]]:
    """The experiments in DVC's JSON: a list of the workspace and the last commit, which has the experiments."""
    workspace, commit = revisions
    baseline = _parse(commit, f"{commit['name'] or 'commit'} {commit['rev'][:7]}")
    experiments = []
    for entry in commit["experiments"] or []:
        state = (entry["executor"] or {}).get("state", SUCCESS)
        (revision,) = entry["revs"]
        experiments.append(_parse(revision, entry["name"] or revision["rev"][:7], state))
    current = _parse(workspace, "workspace")
    if all((current.params, current.metrics) != (row.params, row.metrics) for row in (baseline, *experiments)):
        experiments.insert(0, current)
    return baseline, experiments


def changed_keys(baseline: dict[Keys, Any], experiments: list[dict[Keys, Any]]) -> list[Keys]:
    """The keys that any experiment adds, removes or gives another value, in the order in which they appear."""
    missing = object()
    every_key = dict.fromkeys(baseline)
    for values in experiments:
        every_key |= dict.fromkeys(values)
    return [
        key
        for key in every_key
        if any(values.get(key, missing) != baseline.get(key, missing) for values in experiments)
    ]


def _parse(revision: dict, name: str, state: str = SUCCESS) -> Experiment:
    data = revision["data"] or {}  # none if DVC could not read the revision
    metrics = _merge(data.get("metrics", {})) if state == SUCCESS else {}
    return Experiment(name, state, _merge(data.get("params", {})), metrics)


def _merge(files: dict[str, dict]) -> dict[Keys, Any]:
    """The values of all files by their keys. A file that DVC could not read has an error in place of data."""
    return {keys: value for file in files.values() for keys, value in flatten(file.get("data", {}))}


def flatten(values: dict, prefix: Keys = ()) -> Iterator[tuple[Keys, Any]]:
    """The values of nested sections, each with its keys; `prefix` is put before them."""
    for key, value in values.items():
        if isinstance(value, dict):
            yield from flatten(value, (*prefix, key))
        else:
            yield (*prefix, key), value
