"""The retrieval section: Tables 4 and 5, the original's claims, recall per epoch, retrieved images."""

from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from stages.report.claims import Claim, claim_lines, mean_differences
from stages.report.contact_sheets import plot_retrieved
from stages.report.curves import RECALL, plot_recall, write_curves
from stages.report.numbers import format_optional, format_scientific, star_highest
from stages.report.original import comparison_cells, comparison_table, original_number, sort_as_original
from stages.report.results import Result
from stages.report.section import FIGURES, Inputs, Section, render, select_metrics
from stages.report.tables import Table
from stages.retrieval import BOOTSTRAP

TABLE4 = "table4_retrieval"
TABLE5 = "table5_retrieval_grid"
SCRATCH = "Training from scratch"
LABELS = {"scratch": SCRATCH, "provided": "Finetuning checkpoint"}
PROVIDED = "Evaluating with the provided checkpoint"

BATCH_SIZE = 16  # the original's

CLAIMS = (
    Claim("Finetuning is better than the provided checkpoint", "finetuned", "provided", +1),
    Claim("The provided checkpoint is better than training from scratch", "provided", "scratch", +1),
    Claim(
        "A temperature of 0.5 hurts (against 0.1, weight decay 5e-4)",
        "scratch_lr1e-3_wd5e-4_t05",
        "scratch_lr1e-3_wd5e-4",
        -1,
    ),
)


def original_recall(result: Result) -> float | None:
    """The R@1 that the original prints for a row; None if the row has other settings than the original's."""
    if result.run.params.get("batch_size", BATCH_SIZE) != BATCH_SIZE:
        return None
    return original_number([TABLE4, TABLE5], result.run.name, _settings(result))


def _settings(result: Result) -> list:
    """The first cells of the row: mode, learning rate, weight decay, temperature, epochs."""
    params = result.run.params
    mode = LABELS[params["init"]] if "lr" in params else PROVIDED
    return [mode, *(params.get(key) for key in ("lr", "weight_decay", "temperature", "epochs"))]


def table4(results: list[Result]) -> Table:
    """Table 4: the original's rows in its order."""
    rows = sort_as_original(results, TABLE4)
    return _table("Table 4", TABLE4, rows, [f"{row.metrics[RECALL]:.2f}" for row in rows])


def table5(results: list[Result]) -> Table:
    """Table 5: the original's rows in its order, then all others."""
    rows = sort_as_original(results, TABLE5)
    return _table("Table 5", TABLE5, rows, star_highest([row.metrics[RECALL] for row in rows]))


def _table(title: str, name: str, results: list[Result], scores: list[str]) -> Table:
    rows = []
    for result, score in zip(results, scores, strict=True):
        mode, lr, weight_decay, temperature, epochs = _settings(result)
        rates = (format_scientific(lr), format_scientific(weight_decay))
        comparison = comparison_cells(result.metrics, RECALL, original_recall(result))
        rows.append((mode, *rates, format_optional(temperature), format_optional(epochs), score, *comparison))
    return comparison_table(title, name, rows)


@cache
def read_predictions(path: Path) -> list[dict[str, Any]]:
    """Every validation image's caption, its ranks, and the images nearest to the caption."""
    return pq.read_table(path).to_pylist()


def hits(result: Result) -> np.ndarray:
    """100 for every image whose own caption is ranked first, else 0."""
    return np.array([100.0 * (row["image_to_text_rank"] == 1) for row in read_predictions(result.predictions)])


def claims(results: list[Result], seed: int) -> list[str]:
    """What the original says of these rows."""
    originals = {result.run.name: original_recall(result) for result in results}
    return claim_lines(CLAIMS, results, originals, RECALL, partial(mean_differences, hits, seed=seed))


def section(inputs: Inputs) -> Section:
    """Tables 4 and 5 with their claims and figures."""
    recipes = inputs.results["retrieval"]
    grid = inputs.results["retrieval_grid"]
    results = [*recipes, *grid]
    figures = [FIGURES / "retrieval/r_at_1_per_epoch.png", FIGURES / "retrieval/retrieved.png"]
    plot_recall(figures[0], {describe(result): result for result in results})
    best = max(results, key=lambda result: result.metrics[RECALL])
    rows = inputs.manifest.split("val")
    plot_retrieved(figures[1], describe(best), rows, read_predictions(best.predictions))
    write_curves("retrieval", results, {"epoch": "epoch", "train_loss": "train_loss", "r_at_1": RECALL})
    tables = {TABLE4: table4(recipes), TABLE5: table5(grid)}
    checked_claims = claims(results, inputs.experiment.seed_for(BOOTSTRAP))
    text = render("retrieval.md", run=recipes[0].run, tables=tables.values(), claims=checked_claims)
    keys = (RECALL, f"{RECALL}_low", f"{RECALL}_high", "image_to_text_r_at_5", "text_to_image_r_at_1")
    return Section(text, tables, select_metrics(results, *keys), {best.run_id: figures})


def describe(result: Result) -> str:
    """A row in a few words, such as `scratch, lr 1e-3, wd 1e-3, T 0.1, 5 epochs`."""
    mode, lr, weight_decay, temperature, epochs = _settings(result)
    if lr is None:
        return "provided"
    start = "scratch" if mode == SCRATCH else "finetuned"
    return (
        f"{start}, lr {format_scientific(lr)}, wd {format_scientific(weight_decay)}, T {temperature}, {epochs} epochs"
    )
