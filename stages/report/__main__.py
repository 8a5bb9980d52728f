"""Stage `report`: registers the runs that MLflow lacks, then writes tables, figures and the page."""

import json
import sys
from collections.abc import Iterable
from pathlib import Path

from stages.captioning import BOOTSTRAP as CAPTIONING
from stages.classification import BOOTSTRAP as CLASSIFICATION
from stages.core import tracking
from stages.core.atomic import remove_folders, write_text
from stages.core.runs import RUNS, record_path
from stages.core.skipped import skip_reason
from stages.core.stage import TIMINGS, stage
from stages.data import manifest as manifests
from stages.data.manifest import LABELED, Manifest
from stages.params.experiment import Experiment, load_experiment
from stages.report import attention, captioning, classification, retrieval, segmentation
from stages.report.page import build_page
from stages.report.results import Result, load_results
from stages.report.section import CURVES, FIGURES, ROOT, TABLES, Section, skipped_section
from stages.retrieval import BOOTSTRAP as RETRIEVAL
from stages.segmentation import BOOTSTRAP as SEGMENTATION

# Identities of the runs on the page. This is the only output that is not committed: in a fresh clone, where all other
# outputs are up to date, its absence makes DVC run this stage, which registers the runs in MLflow.
REPORT_RUNS = Path("data/report_runs.json")


def expected_runs(experiment: Experiment) -> dict[str, list[str]]:
    """Names of the runs that the params ask for, by task, without the tasks whose stages were skipped."""
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
    if runs_skip_reason("classification", experiment.classification.settings):
        names["classification"] = []
        names["class_attention"] = ["pretrained"]
    if runs_skip_reason("segmentation", experiment.segmentation.heads):
        names["segmentation"] = []
    return {task: runs for task, runs in names.items() if runs and not skip_reason(RUNS / task)}


def runs_skip_reason(task: str, names: Iterable[str]) -> str | None:
    """Why a task whose runs are stages of their own was skipped; None if it was not."""
    reasons = (skip_reason(record_path(task, name)) for name in names)
    return next((reason for reason in reasons if reason), None)


def build_sections(
    results: dict[str, list[Result]], manifest: Manifest, labeled: Manifest, experiment: Experiment
) -> dict[str, Section]:
    """Every task's part of the page, with its figures and curves written."""
    sections = {}

    if "segmentation" in results:
        seed = experiment.seed_for(SEGMENTATION)
        sections["segmentation"] = segmentation.section(results["segmentation"], manifest, seed)
    else:
        reason = runs_skip_reason("segmentation", experiment.segmentation.heads)
        sections["segmentation"] = skipped_section("Segmentation", "Table 1 is", reason)

    if "captioning" in results:
        seed = experiment.seed_for(CAPTIONING)
        sections["captioning"] = captioning.section(results["captioning"], manifest, seed)
    else:
        reason = skip_reason(RUNS / "captioning")
        sections["captioning"] = skipped_section("Captioning", "Tables 2 and 3 are", reason)

    if {"retrieval", "retrieval_grid"} <= results.keys():
        seed = experiment.seed_for(RETRIEVAL)
        recipes, grid = results["retrieval"], results["retrieval_grid"]
        sections["retrieval"] = retrieval.section(recipes, grid, manifest, seed)
    else:
        reason = skip_reason(RUNS / "retrieval")
        sections["retrieval"] = skipped_section("Retrieval", "Tables 4 and 5 are", reason)

    settings = experiment.classification.settings
    if "classification" in results:
        seed = experiment.seed_for(CLASSIFICATION)
        sections["classification"] = classification.section(results["classification"], labeled, settings, seed)
    else:
        reason = runs_skip_reason("classification", settings)
        sections["classification"] = skipped_section("Classification", "The table is", reason)

    skipped = {task: reason for task in attention.TASKS if (reason := skip_reason(RUNS / task))}
    sections["attention"] = attention.section(results, skipped)
    return sections


def attach_figures(results: list[Result], sections: Iterable[Section]) -> None:
    """Add the figures of every run to its MLflow run."""
    run_ids = {result.run.identity: result.run_id for result in results}
    figures = {}
    for section in sections:
        for identity, paths in section.figures.items():
            run_id = run_ids[identity]
            assert run_id is not None  # all results come from the store
            figures[run_id] = paths
    tracking.attach(figures)


def read_timings() -> str:
    """Seconds of the stages so far in one line, for the terminal."""
    if not TIMINGS.is_file():
        return ""
    timings = json.loads(TIMINGS.read_text())
    return "seconds: " + ", ".join(f"{name} {timing['seconds']}" for name, timing in timings.items())


def main() -> None:
    experiment = load_experiment()
    manifest = manifests.read_manifest()
    labeled = manifests.read_manifest(LABELED)
    folders = (FIGURES, TABLES, CURVES)
    remove_folders(*folders)
    for folder in folders:
        folder.mkdir(parents=True)  # DVC requires the folder, even if nothing is written to it

    results_by_task, from_store = load_results(expected_runs(experiment))
    results = [result for task_results in results_by_task.values() for result in task_results]
    sections = build_sections(results_by_task, manifest, labeled, experiment)
    if from_store:
        attach_figures(results, sections.values())

    tables = {name: table for section in sections.values() for name, table in section.tables.items()}
    for name, table in tables.items():
        table.write_csv(TABLES / f"{name}.csv")
    metrics = {task: section.metrics for task, section in sections.items() if section.metrics}
    write_text(ROOT / "metrics.json", json.dumps(metrics, indent=1) + "\n")
    identities = {f"{result.run.task}/{result.run.name}": result.run.identity for result in results}
    write_text(REPORT_RUNS, json.dumps(identities, indent=1) + "\n")
    data = [manifest] if labeled.source == manifest.source else [manifest, labeled]
    runs = [result.run for result in results]
    page = build_page(data, experiment.profile, sections.values(), from_store, runs)
    write_text(ROOT / "report.md", page)

    texts = [f"{table.plain()}\n" for table in tables.values()]
    print("", *texts, ROOT / "report.md", read_timings(), sep="\n", file=sys.stderr)


if __name__ == "__main__":
    with stage("report"):
        main()
