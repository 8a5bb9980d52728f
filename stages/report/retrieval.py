"""The retrieval section: Tables 4 and 5, their comparison with the original, recall per epoch, retrieved images."""

from stages.params.experiment import Experiment
from stages.report.comparison import OriginalTable, Row, build_section, original_value
from stages.report.contact_sheets import plot_retrieved
from stages.report.curves import plot_recall
from stages.report.numbers import format_optional, format_scientific
from stages.report.plots import curve_rows, write_plot
from stages.report.predictions import read_rows
from stages.report.results import Result, unique_labels
from stages.report.section import FIGURES, Inputs, Section, render
from stages.report.significance import Metric
from stages.retrieval import RECALL

TABLE4 = "table4_retrieval"
TABLE5 = "table5_retrieval_grid"
SCRATCH = "Training from scratch"
LABELS = {"scratch": SCRATCH, "provided": "Finetuning checkpoint"}
PROVIDED = "Evaluating with the provided checkpoint"
MORE = {"image_to_text_r_at_5": "R@5 (%)", "text_to_image_r_at_1": "R@1, text to image (%)"}


def settings(result: Result) -> tuple[str, str, str, str, str]:
    """The first cells of a row: mode, learning rate, weight decay, temperature, epochs."""
    params = result.run.params
    mode = LABELS[params["init"]] if "lr" in params else PROVIDED
    rates = (format_scientific(params.get("lr")), format_scientific(params.get("weight_decay")))
    return mode, *rates, format_optional(params.get("temperature")), format_optional(params.get("epochs"))


def build_table(
    name: str, results: list[Result], metric: Metric, experiment: Experiment, starred: bool = False
) -> OriginalTable:
    """Table 4 or 5; rows of the grid that the original does not have are in the comparison only."""
    rows = []
    for result in results:
        metrics = result.metrics
        more = {column: f"{metrics[key]:.2f}" for key, column in MORE.items()}
        rows.append(Row(result, settings(result), original_value(result, experiment), metric.interval(result), more))
    return OriginalTable(name, rows, metric, experiment.profile, "training", ("Mode",), starred)


def section(inputs: Inputs, metrics: dict[str, Metric]) -> Section:
    """Tables 4 and 5, their comparisons and figures."""
    recipes = inputs.results["retrieval"]
    grid = inputs.results["retrieval_grid"]
    results = [*recipes, *grid]
    tables = [
        build_table(TABLE4, recipes, metrics["retrieval"], inputs.experiment),
        build_table(TABLE5, grid, metrics["retrieval_grid"], inputs.experiment, starred=True),
    ]
    figures = [FIGURES / "retrieval/r_at_1_per_epoch.png", FIGURES / "retrieval/retrieved.png"]
    plot_recall(figures[0], dict(zip(unique_labels(results, describe), results, strict=True)))
    best = max(results, key=lambda result: result.metrics[RECALL])
    rows = inputs.manifest.split("val")
    plot_retrieved(figures[1], describe(best), rows, read_rows(best.predictions))
    write_plot("retrieval", curve_rows(results, {"train_loss": "train_loss", "r_at_1": RECALL}))
    text = render(
        "retrieval.md",
        run=recipes[0].run,
        gallery=recipes[0].metrics["gallery"],
        tables=tables,
    )
    return build_section(text, tables, {best.run_id: figures})


def describe(result: Result) -> str:
    """A row in a few words, such as `scratch, lr 1e-3, wd 1e-3, T 0.1, 5 epochs`."""
    mode, lr, weight_decay, temperature, epochs = settings(result)
    if mode == PROVIDED:
        return "provided"
    start = "scratch" if mode == SCRATCH else "finetuned"
    return f"{start}, lr {lr}, wd {weight_decay}, T {temperature}, {epochs} epochs"
