"""Stage `report`: register the runs that MLflow lacks, then tables, figures and the page."""

import json
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stages import tracking
from stages.data import manifest as manifests
from stages.data.manifest import SPLITS, Manifest
from stages.params.experiment import load_experiment
from stages.report import segmentation
from stages.runs import Run, package_versions, read_run
from stages.segmentation import BOOTSTRAP
from stages.stage import TIMINGS, stage
from stages.writing import write_text


@dataclass(frozen=True)
class Registered:
    """A run's record and its MLflow run, or None where the store could not be used."""

    run: Run
    tracked: tracking.Tracked | None

    def metrics(self, from_store: bool) -> dict[str, Any]:
        """The run's numbers as MLflow has them, in the record's types (MLflow knows floats alone), or the record's."""
        if not from_store:
            return self.run.metrics
        return {
            key: type(self.run.metrics[key])(value)
            for key, value in self.tracked.metrics.items()
            if key in self.run.metrics
        }


ROOT = Path("reports")
FIGURES, TABLES, CURVES = ROOT / "figures", ROOT / "tables", ROOT / "curves"


def collect(task: str, names: list[str]) -> list[Registered]:
    """The record of each run, and what MLflow has of it; registered there first where it was missing."""
    found = []
    for name in names:
        run = read_run(task, name)
        found.append(Registered(run, tracking.fetch(run) if tracking.register(run) else None))
    return found


def page(manifest: Manifest, profile: str, sections: list[str], from_store: bool, runs: list[Run]) -> str:
    """The report in markdown."""
    read_from = (
        "Tables are read from the MLflow runs."
        if from_store
        else "The MLflow store could not be used: tables are read from the run records under `reports/runs`."
    )
    lines = [
        "# vitlab: a laboratory for vision transformers",
        "",
        f"Profile `{profile}`. Made by `dvc repro`; every number comes from a run. {read_from}",
        "",
        "## Data",
        "",
        *facts(manifest),
        "",
        *sections,
        "---",
        "",
        f"Packages: {', '.join(f'{name} {number}' for name, number in _versions(runs).items())}. "
        f"Data: {manifest.source}, manifest `{runs[0].inputs['manifest'][:12]}`, "
        f"backbone weights `{runs[0].inputs['weights'][:12]}`. "
        "Seconds a stage and dates are in `reports/timings.json`, which is not committed.",
        "",
    ]
    return "\n".join(lines)


def facts(manifest: Manifest) -> list[str]:
    """What the data set is, as a list."""
    sides = {(row.width, row.height) for row in manifest.rows}
    smallest, largest = (pick(sides, key=lambda side: side[0] * side[1]) for pick in (min, max))
    sizes = f"{smallest[0]}x{smallest[1]}" + (f" to {largest[0]}x{largest[1]}" if smallest != largest else "")
    captions = sum(len(row.captions) for row in manifest.rows)
    counts = ", ".join(f"{len(manifest.split(split))} {split}" for split in SPLITS)
    return [
        f"- Source: `{manifest.source}`; licence: {manifest.licence}",
        f"- Images: {counts}; {sizes} pixels",
        f"- {len(manifest.classes)} classes: {', '.join(manifest.classes)}",
        f"- Captions: {captions}" + (f"; labels: {len(manifest.labels)}" if manifest.labels else ""),
    ]


def _versions(runs: list[Run]) -> dict[str, str]:
    merged = package_versions("dvc", "mlflow", "pyarrow", "scikit-learn", "scipy", "matplotlib")
    for run in runs:
        merged |= run.versions
    return dict(sorted(merged.items()))


def main() -> None:
    experiment, manifest = load_experiment(), manifests.read()
    for folder in (FIGURES, TABLES, CURVES):
        shutil.rmtree(folder, ignore_errors=True)  # a head that is gone leaves no figure behind
    found = collect("segmentation", list(experiment.segmentation.heads))
    from_store = all(one.tracked for one in found)
    heads = [
        segmentation.Head(segmentation.head_label(one.run.name), one.run, one.metrics(from_store)) for one in found
    ]
    table = segmentation.table(heads)
    table.write_csv(TABLES / f"{segmentation.TABLE}.csv")
    segmentation.write_curves(CURVES / "segmentation", heads)
    figures = segmentation.draw(FIGURES / "segmentation", heads, manifest)
    for one in found:
        if one.tracked:
            tracking.attach(one.tracked.run_id, figures[one.run.name])
    write_text(ROOT / "metrics.json", json.dumps({"segmentation": segmentation.metrics(heads)}, indent=1) + "\n")
    stated = segmentation.claims(heads, manifest, experiment.seed_of(BOOTSTRAP))
    sections = segmentation.section(heads, stated, figures, ROOT)
    runs = [head.run for head in heads]
    write_text(ROOT / "report.md", page(manifest, experiment.profile, sections, from_store, runs))
    print(f"\n{table.plain()}\n\n{ROOT / 'report.md'}\n{_seconds()}", file=sys.stderr)


def _seconds() -> str:
    """Seconds of the stages so far, for the terminal."""
    if not TIMINGS.is_file():
        return ""
    timings = json.loads(TIMINGS.read_text())
    return "seconds: " + ", ".join(f"{name} {timing['seconds']}" for name, timing in timings.items())


if __name__ == "__main__":
    with stage("report"):
        main()
