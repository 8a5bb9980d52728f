"""The section that compares backbones: one head on the patch tokens of each, with intervals and costs."""

import pandas as pd

from stages.core.runs import Run, record_path, run_key
from stages.core.skipped import skip_reason
from stages.params.experiment import Experiment
from stages.params.model_source import display_name
from stages.report.comparison import result_numbers
from stages.report.markdown import Markdown
from stages.report.numbers import MISSING, format_number, format_range
from stages.report.results import Result, RunNames
from stages.report.section import FIGURES, Inputs, Section, render
from stages.report.segmentation import head_label, plot_examples
from stages.report.significance import Metric, compare
from stages.report.tables import Table
from stages.segmentation import BACKBONES, backbone_run_name

TABLE = "backbones"
COST_TABLE = "backbone_costs"
OWN = "the profile's own"  # no key of `backbones` can be this
MASKS = FIGURES / "backbones" / "masks.png"


def backbone_runs(experiment: Experiment) -> RunNames:
    """Names and seeds of the runs on compared backbones."""
    return [
        (backbone_run_name(backbone, head), seed)
        for head in experiment.segmentation.compare
        for backbone in experiment.backbones
        for seed in experiment.segmentation.seeds
    ]


def skipped_backbones(names: RunNames) -> dict[str, str]:
    """The reason of every run whose backbone was skipped, by the run's name."""
    reasons = {}
    for name, seed in names:
        reason = skip_reason(record_path(BACKBONES, run_key(name, seed)))
        if reason:
            reasons[name] = reason
    return reasons


def describe_backbone(run: Run) -> str:
    """`vit_scenes/model.safetensors`, with "random weights" where they are."""
    name = display_name(run.inputs["backbone"]).removeprefix("data/checkpoints/")
    return f"{name}, random weights" if run.params.get("random") else name


def describe_layers(layers: str) -> str:
    """`last`, `last four` or `blocks 0, 5, 11`."""
    return {"last": "last", "last4": "last four"}.get(layers, f"blocks {layers}")


def build_table(own: list[Result], compared: list[Result], metric: Metric) -> Table:
    """For every compared head, a row of the profile's own backbone, then one per compared backbone."""
    rows = []
    for reference in own:
        with_this_head = [result for result in compared if result.run.params["head"] == reference.name]
        for result in (reference, *with_this_head):
            rows.append(table_row(result, reference, metric))
    return Table(
        "Backbones compared, under the same heads",
        pd.DataFrame(rows, dtype=object),
        ("Name", "Backbone", "Layers", "Head"),
    )


def table_row(result: Result, reference: Result, metric: Metric) -> dict[str, str]:
    """The cells of one result by column; `reference` is the same head on the profile's own backbone."""
    run = result.run
    difference = MISSING
    if result is not reference:
        margin = compare(result, reference, metric)
        difference = f"{margin.difference:+.2f} ({margin.low:+.2f} to {margin.high:+.2f})"
    return {
        "Name": run.params.get("backbone", OWN),
        "Backbone": describe_backbone(run),
        "Layers": describe_layers(run.inputs["layers"]),
        "Head": head_label(reference),
        "mIoU": format_number(result.metrics[metric.key]),
        "95 % interval": format_range(*metric.interval(result)),
        "Minus the profile's own": difference,
    }


def build_cost_table(own: Result, compared: list[Result]) -> Table:
    """What every backbone costs, whatever the head; `own` is any result of the profile's own backbone."""
    runs = {OWN: own.run} | {result.run.params["backbone"]: result.run for result in compared}
    rows = []
    for name, run in runs.items():
        cost = run.details["backbone"]
        row = {
            "Name": name,
            "Parameters (M)": f"{cost['parameters'] / 1e6:.2f}",
            "GFLOPs": f"{cost['flops'] / 1e9:.2f}",
            "Tokens": str(cost["tokens"]),
            "Width": str(run.inputs["dim"]),
            "Cache (GB)": f"{run.details['feature_bytes'] / 1e9:.3f}",
        }
        rows.append(row)
    return Table("What the backbones cost", pd.DataFrame(rows, dtype=object), ("Name",))


def plot_backbones(own: Result, compared: list[Result], inputs: Inputs) -> None:
    """Predicted masks of the same validation images, one row per backbone."""
    results = {OWN: own} | {result.run.params["backbone"]: result for result in compared}
    plot_examples(MASKS, f"Head: {head_label(own)}", results, inputs.manifest)


def section(inputs: Inputs, metrics: dict[str, Metric]) -> Section:
    """The table and a figure of masks; empty if the params compare nothing, or if segmentation was skipped."""
    compared = inputs.results.get(BACKBONES, [])
    if "segmentation" in inputs.skipped or not (compared or inputs.skipped_runs):
        return Section(Markdown(""))
    if not compared:
        return Section(render("backbones.md", tables=[], skipped=inputs.skipped_runs))
    metric = metrics[BACKBONES]
    heads = inputs.experiment.segmentation.compare
    own = [result for result in inputs.results["segmentation"] if result.name in heads]
    first = own[0]
    tables = {TABLE: build_table(own, compared, metric), COST_TABLE: build_cost_table(first, compared)}
    plot_backbones(first, [result for result in compared if result.run.params["head"] == first.name], inputs)
    text = render(
        "backbones.md",
        tables=list(tables.values()),
        crop=inputs.experiment.active.view.crop,
        figure=MASKS,
        seeds=len(first.runs),
        skipped=inputs.skipped_runs,
    )
    numbers = [
        record for result in compared for record in result_numbers(TABLE, result, metric.key, metric.interval(result))
    ]
    headline = {result.name: {metric.key: result.metrics[metric.key]} for result in compared}
    return Section(text, tables=tables, numbers=numbers, metrics=headline, figures={first.run_id: [MASKS]})
