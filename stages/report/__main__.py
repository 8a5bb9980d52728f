"""Stage `report`: register the runs that MLflow lacks, then tables, figures and the page."""

import json
import shutil
import sys
from collections.abc import Iterable
from pathlib import Path

from stages.captioning import BOOTSTRAP as CAPTIONING
from stages.classification import BOOTSTRAP as CLASSIFICATION
from stages.core import tracking
from stages.core.atomic import write_text
from stages.core.runs import RUNS as RUNS
from stages.core.runs import Run, package_versions, record_path
from stages.core.skipped import skip_reason
from stages.core.stage import TIMINGS, stage
from stages.data import manifest as manifests
from stages.data.manifest import LABELED, SPLITS, Manifest
from stages.params.experiment import Experiment, load_experiment
from stages.params.model_source import display_name
from stages.report import attention, captioning, classification, retrieval, segmentation
from stages.report.results import Result, collect
from stages.report.section import CURVES, FIGURES, ROOT, TABLES, Section
from stages.retrieval import BOOTSTRAP as RETRIEVAL
from stages.segmentation import BOOTSTRAP as SEGMENTATION

# The runs that the page shows, by identity. It is the one output that is not committed: in a fresh clone, where all
# else comes out as it was, its absence makes DVC run this stage, which tells MLflow of the runs.
SHOWN = Path("data/shown.json")


def page(data: list[Manifest], profile: str, sections: list[str], from_store: bool, runs: list[Run]) -> str:
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
        *(line for manifest in data for line in (*facts(manifest), "")),
        *sections,
        "---",
        "",
        f"Packages: {', '.join(f'{name} {number}' for name, number in _versions(runs).items())}. "
        f"Data: {', '.join(f'{name}, manifest `{held[:12]}`' for name, held in _manifests(runs).items())}. "
        f"Weights: {', '.join(f'{name} `{weights[:12]}`' for name, weights in _weights(runs).items())}. "
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
    classes = f"{len(manifest.classes)} classes: {', '.join(manifest.classes)}" if manifest.classes else "No masks"
    return [
        f"- Source: `{manifest.source}`; license: {manifest.license}",
        f"- Images: {counts}; {sizes} pixels",
        f"- {classes}",
        f"- Captions: {captions or 'none'}; labels: {len(manifest.labels) or 'none'}",
    ]


def _weights(runs: list[Run]) -> dict[str, str]:
    """Hashes of the models' weights."""
    return {display_name(run.inputs["backbone"]): run.inputs["weights"] for run in runs}


def _manifests(runs: list[Run]) -> dict[str, str]:
    """Hashes of the manifests, by source."""
    return {run.inputs["source"]: run.inputs["manifest"] for run in runs if {"source", "manifest"} <= run.inputs.keys()}


def _versions(runs: list[Run]) -> dict[str, str]:
    merged = package_versions("dvc", "mlflow", "pyarrow", "scikit-learn", "scipy", "matplotlib")
    for run in runs:
        merged |= run.versions
    return dict(sorted(merged.items()))


def asked_runs(experiment: Experiment) -> dict[str, list[str]]:
    """Names of the runs that params ask for, by task; a task without runs, as its stage has declared, is left out."""
    names = {
        "segmentation": list(experiment.segmentation.heads),
        "captioning": list(experiment.captioning.cells),
        "retrieval": ["provided", "scratch", "finetuned"],
        "retrieval_grid": list(experiment.retrieval.grid),
        "classification": list(experiment.classification.settings),
        "position_similarity": attention.position_runs(
            experiment.active.classifier.backbone, experiment.attention.positions.others
        ),
        "class_attention": ["pretrained", "finetuned"],
        "caption_attention": [experiment.attention.captions.cell],
    }
    if undone("classification", experiment.classification.settings):
        names |= {"classification": [], "class_attention": ["pretrained"]}
    if undone("segmentation", experiment.segmentation.heads):
        names["segmentation"] = []
    return {task: asked for task, asked in names.items() if asked and not skip_reason(RUNS / task)}


def undone(task: str, names: Iterable[str]) -> str | None:
    """Why a task's runs had nothing to do, or None where they had."""
    return next(filter(None, (skip_reason(record_path(task, name)) for name in names)), None)


def sections_of(
    results: dict[str, list[Result]], manifest: Manifest, labeled: Manifest, experiment: Experiment
) -> dict[str, Section]:
    """Every task's part of the page."""
    made = {}
    if "segmentation" in results:
        seed = experiment.seed_for(SEGMENTATION)
        made["segmentation"] = segmentation.section(results["segmentation"], manifest, seed)
    else:
        reason = undone("segmentation", experiment.segmentation.heads)
        made["segmentation"] = left_out("Segmentation", "Table 1 is", reason)
    if "captioning" in results:
        made["captioning"] = captioning.section(results["captioning"], manifest, experiment.seed_for(CAPTIONING))
    else:
        made["captioning"] = left_out("Captioning", "Tables 2 and 3 are", skip_reason(RUNS / "captioning"))
    if {"retrieval", "retrieval_grid"} <= results.keys():
        seed = experiment.seed_for(RETRIEVAL)
        made["retrieval"] = retrieval.section(results["retrieval"], results["retrieval_grid"], manifest, seed)
    else:
        made["retrieval"] = left_out("Retrieval", "Tables 4 and 5 are", skip_reason(RUNS / "retrieval"))
    if "classification" in results:
        settings, seed = experiment.classification.settings, experiment.seed_for(CLASSIFICATION)
        made["classification"] = classification.section(results["classification"], labeled, settings, seed)
    else:
        made["classification"] = left_out(
            "Classification", "The table is", undone("classification", experiment.classification.settings)
        )
    absent = {task: reason for task in attention.TASKS if (reason := skip_reason(RUNS / task))}
    made["attention"] = attention.section(results, absent)
    return made


def left_out(title: str, what: str, reason: str | None) -> Section:
    """The part of a task that had nothing to do."""
    return Section([f"## {title}", "", f"{what} left out: {reason}.", ""])


def main() -> None:
    experiment, manifest, labeled = load_experiment(), manifests.read_manifest(), manifests.read_manifest(LABELED)
    for folder in (FIGURES, TABLES, CURVES):
        shutil.rmtree(folder, ignore_errors=True)  # a run that is gone leaves no figure behind
        folder.mkdir(parents=True)  # DVC asks for it, whatever there is to show
    results, from_store = collect(asked_runs(experiment))
    sections = sections_of(results, manifest, labeled, experiment)
    tables = {name: table for section in sections.values() for name, table in section.tables.items()}
    for name, table in tables.items():
        table.write_csv(TABLES / f"{name}.csv")
    if from_store:
        _attach(results, sections)
    shown = {f"{task}/{one.run.name}": one.run.identity for task, some in results.items() for one in some}
    write_text(SHOWN, json.dumps(shown, indent=1) + "\n")
    metrics = {task: section.metrics for task, section in sections.items() if section.metrics}
    write_text(ROOT / "metrics.json", json.dumps(metrics, indent=1) + "\n")
    lines = [line for section in sections.values() for line in section.lines]
    runs = [one.run for some in results.values() for one in some]
    data = [manifest] if labeled.source == manifest.source else [manifest, labeled]
    write_text(ROOT / "report.md", page(data, experiment.profile, lines, from_store, runs))
    print(
        "",
        *(f"{table.plain()}\n" for table in tables.values()),
        ROOT / "report.md",
        _seconds(),
        sep="\n",
        file=sys.stderr,
    )


def _attach(results: dict[str, list[Result]], sections: dict[str, Section]) -> None:
    """Put every run's figures beside it in MLflow."""
    ids = {one.run.identity: one.run_id for some in results.values() for one in some}
    tracking.attach({ids[one]: files for section in sections.values() for one, files in section.figures.items()})


def _seconds() -> str:
    """Seconds of the stages so far, for the terminal."""
    if not TIMINGS.is_file():
        return ""
    timings = json.loads(TIMINGS.read_text())
    return "seconds: " + ", ".join(f"{name} {timing['seconds']}" for name, timing in timings.items())


if __name__ == "__main__":
    with stage("report"):
        main()
