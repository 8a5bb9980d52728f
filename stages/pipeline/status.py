"""What `dvc repro` would run and why, in words: `make status`.

`dvc status` lists the stages that differ from their last run. Those after them run too if their inputs turn out
different, which nobody knows before: they come last.
"""

import argparse
import json
import re
import subprocess
from typing import Any

from stages.core.messages import join_names
from stages.core.stage import InputError, stage
from stages.params.section import read_params
from stages.pipeline.columns import label_lines
from stages.pipeline.stage_names import finished_stages, read_pipeline, stage_names

LIMIT = 3  # names per reason
SAME_OUTPUT = "check_params"  # its output is always the same: no stage runs because this one did
Status = dict[str, list[dict[str, Any] | str]]  # `dvc status --json`: by stage, what has changed
Edges = list[tuple[str, str]]  # a stage and one that depends on it


def explain(changes: list[dict[str, Any] | str]) -> list[str]:
    """Why a stage would run, in words, from DVC's changes to its dependencies, outputs and command."""
    names: dict[str, list[str]] = {}
    for change in changes:
        if isinstance(change, str):  # "changed checksum": of the stage's definition; "always changed"
            words = "command changed" if change == "changed checksum" else change
            names.setdefault(words, [])
            continue
        for path, state in change.get("changed deps", {}).items():
            if isinstance(state, dict):  # params.yaml, and the state by param
                for param, param_state in state.items():
                    names.setdefault(f"param {_past(param_state)}", []).append(param)
            elif state == "deleted":
                names.setdefault("input missing", []).append(path)
            else:
                names.setdefault("code changed" if path.startswith("stages/") else "input changed", []).append(path)
        for path, state in change.get("changed outs", {}).items():
            if state == "modified":
                names.setdefault("output changed", []).append(path)
            else:
                names.setdefault("output missing", [])  # usually all of a stage's are: their names would be noise
    if len(names) > 1:
        names.pop("input missing", None)  # an earlier stage makes it, and is listed with its own reason
    return [f"{words}: {join_names(items, LIMIT)}" if items else words for words, items in names.items()]


def _past(state: str) -> str:
    """DVC's word for a param's state, as it is said of a param."""
    return {"modified": "changed", "new": "added", "deleted": "removed"}.get(state, state)


def stages_after(changed: set[str], edges: Edges) -> list[str]:
    """The stages that depend on a changed one, directly or not, and have not changed; in the order of `edges`."""
    reached: set[str] = set()
    following = changed - {SAME_OUTPUT}
    while following:
        reached |= following
        following = {after for before, after in edges if before in following} - reached
    return [name for name in dict.fromkeys(after for _, after in edges) if name in reached - changed]


def format_status(status: Status, edges: Edges, finished: set[str]) -> str:
    """The stages that would run with their reasons, and those that may; `finished` are those that have ever run."""
    if not status:
        return "Nothing to do: everything is up to date."
    reasons = {}
    for name, changes in status.items():
        reasons[name] = "; ".join(explain(changes)) if name in finished else "never run"
    width = max(map(len, reasons))
    lines = [f"`make repro` would run {_count(len(reasons))}:", ""]
    lines += [label_lines(name, reason, width) for name, reason in reasons.items()]
    following = stages_after(set(reasons), edges)
    if following:
        lines += ["", label_lines("And then, if their inputs change:", ", ".join(following), 0)]
    return "\n".join(lines)


def _count(stages: int) -> str:
    return "1 stage" if stages == 1 else f"{stages} stages"


def load_status() -> Status:
    """What `dvc status` lists, without frozen stages: `dvc repro` does not run them."""
    # DVC logs to the same stream while it hashes large files (https://github.com/iterative/dvc/issues/10242).
    status = json.loads(_run_dvc("status", "--json").splitlines()[-1])
    names = stage_names(read_pipeline(), read_params())
    return {name: changes for name, changes in status.items() if name in names}


def load_edges() -> Edges:
    """Pairs of a stage and one that depends on it."""
    return re.findall(r'^"(.*?)" -> "(.*?)";$', _run_dvc("dag", "--dot"), re.MULTILINE)


def _run_dvc(*command: str) -> str:
    result = subprocess.run(["dvc", *command], capture_output=True, text=True)
    if result.returncode:
        # The line that starts with "ERROR: " names the problem; hints follow.
        errors = [line for line in result.stderr.splitlines() if line.startswith("ERROR: ")]
        message = errors[0].removeprefix("ERROR: ") if errors else result.stderr.strip()
        raise InputError(f"dvc {command[0]}: {message}")
    return result.stdout


def main() -> None:
    status = load_status()
    edges = load_edges() if status else []  # asking DVC takes seconds
    print(format_status(status, edges, finished_stages()))


if __name__ == "__main__":
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    with stage("status", record=False):
        main()
