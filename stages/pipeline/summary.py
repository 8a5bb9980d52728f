"""What `dvc repro` has run and reused, with seconds, the headline numbers and the page: the end of `make repro`."""

import argparse
import json
import time
from datetime import datetime
from pathlib import Path
from typing import Any

from stages.compare.experiments import flatten
from stages.core.stage import InputError, read_timings, stage
from stages.params.section import read_params
from stages.pipeline.columns import label_lines
from stages.pipeline.stage_names import read_pipeline, stage_names

METRICS = Path("reports/metrics.json")
PAGES = "reports/report.html (open it in a browser), reports/report.md"
UNRECORDED = {"check_params"}  # takes no time worth recording, and runs for each change of params.yaml
NO_BREAK = "\u00a0"  # `textwrap` does not break lines at it


def stages_run(names: list[str], timings: dict[str, dict], since: float) -> dict[str, float]:
    """Seconds of the stages that finished at or after `since`, in seconds since the epoch, by name."""
    seconds = {}
    for name in names:
        timing = timings.get(name)
        if timing and datetime.strptime(timing["finished"], "%Y-%m-%dT%H:%M:%S%z").timestamp() >= since:
            seconds[name] = timing["seconds"]
    return seconds


def format_summary(
    names: list[str], seconds: dict[str, float], total_seconds: float, metrics: dict[str, Any], profile: str
) -> str:
    """The summary of a run of stages `names`, of which those in `seconds` ran; `metrics` is that of `metrics.json`."""
    if not seconds:
        return f"Everything was up to date; nothing ran.\nReport: {PAGES}"
    reused = [name for name in names if name not in seconds]
    width = max(map(len, seconds))
    lines = [f"Ran {len(seconds)} of {len(names)} stages in {format_duration(total_seconds)}; seconds of each:"]
    lines += [f"  {name:{width}}  {value:7.1f} s" for name, value in seconds.items()]
    if reused:
        lines += ["", label_lines(f"Reused {len(reused)}:", ", ".join(reused), 0)]
    lines += ["", f"Headline numbers (%), profile {profile}:", *format_metrics(metrics)]
    lines += ["", f"Report: {PAGES}"]
    return "\n".join(lines)


def format_metrics(metrics: dict[str, Any]) -> list[str]:
    """One entry per task and metric: `segmentation miou  linear 47.98, transformer 70.38`."""
    groups: dict[str, list[str]] = {}
    for keys, value in flatten(metrics):
        task, *run, metric = keys
        groups.setdefault(f"  {task} {metric}", []).append(f"{' '.join(run)} {value:.2f}".replace(" ", NO_BREAK))
    width = max(map(len, groups), default=0)
    lines = [label_lines(label, ", ".join(numbers), width) for label, numbers in groups.items()]
    return [line.replace(NO_BREAK, " ") for line in lines]


def format_duration(seconds: float) -> str:
    """`40 s`, `12 min 5 s`."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


def load_metrics() -> dict[str, Any]:
    """The headline numbers by task and run. Raises `InputError` if there are none."""
    try:
        return json.loads(METRICS.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(f"{METRICS} is not valid JSON: {error}; run `dvc repro -f -s report`") from error


def main(since: float) -> None:
    params = read_params()
    names = [name for name in stage_names(read_pipeline(), params) if name not in UNRECORDED]
    seconds = stages_run(names, read_timings(), since)
    print("", format_summary(names, seconds, time.time() - since, load_metrics(), params["profile"]), sep="\n")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--since", type=float, required=True, help="when the run started, in seconds since the epoch")
    arguments = parser.parse_args()
    with stage("summary", record=False):
        main(arguments.since)
