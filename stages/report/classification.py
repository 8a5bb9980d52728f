"""The classification section: the table, its comparison with the original, accuracy per epoch, confusions, mistakes."""

import math
from typing import Any

from stages.params.experiment import Experiment
from stages.report.comparison import OriginalTable, Row, build_section, original_value
from stages.report.confusion_matrix import plot_confusion_matrix
from stages.report.contact_sheets import plot_mistakes
from stages.report.curves import plot_accuracy
from stages.report.numbers import format_best, format_scientific
from stages.report.original import load_original
from stages.report.plots import confusion_rows, curve_rows, write_plot
from stages.report.predictions import read_rows
from stages.report.results import Result
from stages.report.section import FIGURES, Inputs, Section, render
from stages.report.significance import Margin, Metric, compare

TABLE = "classification"
LEARNED_LOSS = 0.5  # training loss (nats) below which a setting counts as trained


def build_table(results: list[Result], metric: Metric, experiment: Experiment) -> OriginalTable:
    """The original's settings; others are in the comparison only.

    The original's labels name its settings, so a row with other settings has the name of its run in place of one.
    """
    rows = []
    for result in results:
        params = result.run.params
        metrics = result.metrics
        original = original_value(result, experiment)
        label = result.name if original is None else load_original()[TABLE]["rows"][result.name][0]
        more = {
            "Learning Rate": format_scientific(params["lr"]),
            "Input": f"{params['size']}x{params['size']}" + (", augmented" if params["augment"] else ""),
            "Effective batch size": str(effective_batch_size(result)),
            "Steps": f"{metrics['steps']:.0f}",
            "Train loss": f"{metrics['train_loss']:.2f}",
            "Best epoch": format_best(result.frame["best_accuracy"], result.frame["best_epoch"]),
        }
        rows.append(Row(result, (label,), original, metric.interval(result), more))
    return OriginalTable(TABLE, rows, metric, experiment.profile, "training", left=("Setting",))


def effective_batch_size(result: Result) -> int:
    """Images per optimizer step."""
    return result.run.params["batch_size"] * result.run.params["accumulate"]


def equal_step_margins(results: list[Result], metric: Metric) -> list[Margin]:
    """For each setting with `equal_steps`: how far the one that accumulates as many batches a step is above it."""
    margins = []
    for result in results:
        params = result.run.params
        if params["equal_steps"] is None:
            continue
        expected = params | {"accumulate": params["equal_steps"], "equal_steps": None}
        for accumulated in results:
            if accumulated.run.params == expected:  # of the same first seed
                margins.append(compare(accumulated, result, metric))
    return margins


def still_learning(results: list[Result]) -> list[dict[str, Any]]:
    """The settings that were still learning when their training ended, with what the page says of them."""
    return [
        {
            "name": result.name,
            "loss": result.metrics["train_loss"],
            "steps": result.metrics["steps"],
            "images": effective_batch_size(result),
        }
        for result in results
        if _is_learning(result)
    ]


def _is_learning(result: Result) -> bool:
    """Whether the training loss fell in the last epoch, and lies between a trained model's and a random guess's."""
    losses = [epoch["train_loss"] for epoch in result.run.history]
    random_guess = math.log(len(result.run.details["confusion"]))
    return len(losses) > 1 and LEARNED_LOSS < losses[-1] < min(losses[-2], random_guess)


def section(inputs: Inputs, metrics: dict[str, Metric]) -> Section:
    """The table, its comparison and figures."""
    results = inputs.results["classification"]
    manifest = inputs.labeled
    table = build_table(results, metrics["classification"], inputs.experiment)
    accuracy_figure, confusion_figure, mistakes_figure = figures = [
        FIGURES / "classification" / f"{name}.png" for name in ("accuracy_per_epoch", "confusion", "mistakes")
    ]
    best = max(results, key=lambda result: result.metrics["accuracy"])
    plot_accuracy(accuracy_figure, results)
    plot_confusion_matrix(confusion_figure, best, manifest.labels)
    wrong = plot_mistakes(mistakes_figure, best.name, manifest.split("val"), read_rows(best.predictions))
    curves = curve_rows(results, {key: key for key in ("train_loss", "val_loss", "accuracy")})
    write_plot("classification", curves)
    write_plot("confusion", confusion_rows(results, manifest.labels))
    text = render(
        "classification.md",
        run=best.run,
        images=best.metrics["images"],
        labels=len(best.run.details["confusion"]),
        untrained=best.run.details["untrained_labels"],
        table=table,
        learning=still_learning(results),
        equal_steps=equal_step_margins(results, metrics["classification"]),
        batch=effective_batch_size,
        wrong=wrong,
    )
    return build_section(text, [table], {best.run_id: figures if wrong else figures[:2]})
