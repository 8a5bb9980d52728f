"""Stage `report`: registers the runs that MLflow lacks, then writes tables, figures and the page."""

import argparse
import json
import sys
from collections.abc import Iterable
from itertools import product
from pathlib import Path

from stages.core.atomic import remove_folders, write_text
from stages.core.runs import RUNS, record_path, run_key
from stages.core.skipped import skip_reason
from stages.core.stage import read_timings, stage
from stages.data import manifest as manifests
from stages.data.manifest import LABELED
from stages.params.experiment import Experiment, load_experiment
from stages.report import attention, backbones, captioning, classification, retrieval, segmentation
from stages.report.claims import evaluate_claims
from stages.report.comparison import write_numbers
from stages.report.html import build_html
from stages.report.metrics import task_metrics
from stages.report.page import build_page
from stages.report.results import RunNames, load_results
from stages.report.section import FIGURES, PLOTS, ROOT, TABLES, Inputs, Section, render
from stages.report.significance import Metric
from stages.report.tables import Table
from stages.tracking.report_runs import Group, show_in_report

# Identities of the runs on the page. This is the only output that is not committed: in a fresh clone, where all other
# outputs are up to date, its absence makes DVC run this stage, which registers the runs in MLflow.
REPORT_RUNS = Path("data/report_runs.json")

SECTIONS = {
    "segmentation": segmentation.section,
    "backbones": backbones.section,
    "captioning": captioning.section,
    "retrieval": retrieval.section,
    "classification": classification.section,
    "attention": attention.section,
}
# How MLflow groups the runs of a task: the group's title, and the tables in which the runs are rows.
GROUPS = {
    "segmentation": ("Table 1", (segmentation.TABLE,)),
    "backbones": ("Backbones compared", (backbones.TABLE, backbones.COST_TABLE)),
    "captioning": ("Tables 2 and 3", (captioning.TABLE2, captioning.TABLE3)),
    "retrieval": ("Table 4", (retrieval.TABLE4,)),
    "retrieval_grid": ("Table 5", (retrieval.TABLE5,)),
    "classification": ("Classification", (classification.TABLE,)),
    "position_similarity": ("Position embeddings", ()),
    "class_attention": ("Class token", (attention.CLASS_TABLE,)),
    "caption_attention": ("Words of captions", (attention.WORD_TABLE,)),
    "second_captioner": ("Words of a second captioner", ()),
}
TASK_TABLES = {
    "segmentation": "Table 1 is",
    "captioning": "Tables 2 and 3 are",
    "retrieval": "Tables 4 and 5 are",
    "classification": "The table is",
}


def expected_runs(experiment: Experiment) -> dict[str, RunNames]:
    """Names and seeds of the runs that the params ask for, by task."""
    vits = [experiment.active.classifier.backbone, *experiment.attention.positions.others]
    recipes: RunNames = []
    for name, row in experiment.retrieval.table4.items():
        recipes += _with_seeds([name], experiment.retrieval.seeds) if row else [(name, None)]
    return {
        "segmentation": _with_seeds(experiment.segmentation.heads, experiment.segmentation.seeds),
        "backbones": backbones.backbone_runs(experiment),
        "captioning": experiment.captioning.runs,
        "retrieval": recipes,
        "retrieval_grid": _with_seeds(experiment.retrieval.grid, experiment.retrieval.seeds),
        "classification": _with_seeds(experiment.classification.settings, experiment.classification.seeds),
        "position_similarity": [(name, None) for name in attention.position_runs(vits)],
        "class_attention": [("pretrained", None), ("finetuned", None)],
        "caption_attention": [(experiment.attention.captions.cell, None)],
        "second_captioner": [(str(experiment.attention.captions.also), None)],
    }


def _with_seeds(names: Iterable[str], seeds: Iterable[int]) -> RunNames:
    return list(product(names, seeds))


def skip_reasons(runs: dict[str, RunNames]) -> dict[str, str]:
    """The tasks among `runs` whose stages had nothing to do, with the reason."""
    reasons = {}
    for task, names in runs.items():
        # The reason is in the runs' folder if one stage makes them all, else in place of each record.
        outputs = (RUNS / task, *(record_path(task, run_key(name, seed)) for name, seed in names))
        messages = [reason for output in outputs if (reason := skip_reason(output))]
        if messages:
            reasons[task] = messages[0]
    return reasons


def build_sections(inputs: Inputs, metrics: dict[str, Metric]) -> dict[str, Section]:
    """Every task's part of the page, by task; writes its figures and the data of its plots."""
    sections = {}
    for task, build in SECTIONS.items():
        if task in inputs.skipped:
            reason = inputs.skipped[task]
            text = render("skipped.md", title=task.capitalize(), tables=TASK_TABLES[task], reason=reason)
            sections[task] = Section(text)
        else:
            sections[task] = build(inputs, metrics)
    return sections


def build_groups(inputs: Inputs, metrics: dict[str, Metric], tables: dict[str, Table]) -> list[Group]:
    """The runs of every task that was not skipped, with the tables in which they are rows, as MLflow shows them."""
    groups = []
    for task, results in inputs.results.items():
        title, names = GROUPS[task]
        written = {name: tables[name] for name in names if name in tables}
        runs = {}
        for result in results:
            for run_id, run in zip(result.run_ids, result.runs, strict=True):
                assert run_id is not None  # all results come from the store
                runs[run_id] = run
        files = [TABLES / f"{name}{suffix}" for name in written for suffix in (".md", ".csv")]
        text = "\n".join(table.markdown() for table in written.values())
        metric = metrics[task].key if task in metrics else ""
        rows = {result.name: result.metrics[metric] for result in results} if metric else {}
        groups.append(Group(title, runs, files, text, metric, rows))
    return groups


def describe_timings() -> str:
    """Seconds of the stages so far in one line, for the terminal."""
    timings = [f"{name} {timing['seconds']}" for name, timing in read_timings().items()]
    return f"seconds: {', '.join(timings)}" if timings else ""


def main() -> None:
    experiment = load_experiment()
    manifest = manifests.read_manifest()
    labeled = manifests.read_manifest(LABELED)
    runs = expected_runs(experiment)
    skipped_runs = backbones.skipped_backbones(runs["backbones"])
    runs["backbones"] = [(name, seed) for name, seed in runs["backbones"] if name not in skipped_runs]
    skipped = skip_reasons(runs)
    if "classification" in skipped:
        runs["class_attention"].remove(("finetuned", None))
    expected = {task: names for task, names in runs.items() if names and task not in skipped}
    results_by_task, from_store = load_results(expected)
    inputs = Inputs(results_by_task, skipped, manifest, labeled, experiment, skipped_runs)

    folders = (FIGURES, TABLES, PLOTS)
    remove_folders(*folders)
    for folder in folders:
        folder.mkdir(parents=True)  # DVC requires the folder, even if nothing is written to it
    metrics = task_metrics(inputs)
    sections = build_sections(inputs, metrics)
    claims = render("claims.md", verdicts=evaluate_claims(inputs, metrics))
    write_text(ROOT / "claims.md", f"# What the original says, and what the runs show\n\n{claims}")

    assigned = {name: table for section in sections.values() for name, table in section.assigned.items() if table}
    tables = assigned | {name: table for section in sections.values() for name, table in section.tables.items()}
    for name, table in tables.items():
        table.write(TABLES, name)
    if from_store:
        figures = {
            run_id: paths for section in sections.values() for run_id, paths in section.figures.items() if run_id
        }
        show_in_report(build_groups(inputs, metrics, tables), figures, experiment.profile)
    numbers = [record for section in sections.values() for record in section.numbers]
    write_text(ROOT / "results.csv", write_numbers(numbers))
    metrics_by_task = {task: section.metrics for task, section in sections.items() if section.metrics}
    write_text(ROOT / "metrics.json", json.dumps(metrics_by_task, indent=1) + "\n")
    all_runs = [run for results in results_by_task.values() for result in results for run in result.runs]
    identities = {f"{run.task}/{run.key}": run.identity for run in all_runs}
    write_text(REPORT_RUNS, json.dumps(identities, indent=1) + "\n")
    data = [manifest] if labeled.source == manifest.source else [manifest, labeled]
    page = build_page(data, experiment.profile, list(sections.values()), claims, from_store, all_runs)
    write_text(ROOT / "report.md", page)
    write_text(ROOT / "report.html", build_html(page, inputs))

    texts = [f"{table.plain()}\n" for table in assigned.values()]
    print("", *texts, ROOT / "report.md", describe_timings(), sep="\n", file=sys.stderr)


if __name__ == "__main__":
    argparse.ArgumentParser(description=__doc__).parse_args()
    with stage("report"):
        main()
