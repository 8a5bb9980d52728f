"""The retrieval section: Tables 4 and 5, recall per epoch, a sheet of what is found."""

from functools import cache
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from stages.core.atomic import write_text
from stages.core.bootstrap import bootstrap_means
from stages.data.manifest import Manifest
from stages.params.model_source import display_name
from stages.report.claims import Claim, answerable
from stages.report.contact_sheets import SCORE, draw_found, draw_recall
from stages.report.numbers import beside, plain, scientific, starred
from stages.report.original import load_original
from stages.report.results import Result
from stages.report.section import CURVES, FIGURES, Section, image
from stages.report.tables import Table

TABLE4, TABLE5 = "table4_retrieval", "table5_retrieval_grid"
SCRATCH = "Training from scratch"
LABELS = {"scratch": SCRATCH, "provided": "Finetuning checkpoint"}
PROVIDED = "Evaluating with the provided checkpoint"

BATCH = 16  # the report's

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


def _settings(result: Result) -> list:
    asked = result.run.params
    keys = ("lr", "weight_decay", "temperature", "epochs")
    label = LABELS[asked["init"]] if "lr" in asked else PROVIDED
    return [label, *(asked.get(key) for key in keys)]


def reported(result: Result) -> float | None:
    """What the report prints for this row, if the row is still set as there."""
    for name in (TABLE4, TABLE5):
        row = load_original()[name]["rows"].get(result.run.name)
        if row and row[:5] == _settings(result) and result.run.params.get("batch_size", BATCH) == BATCH:
            return row[5]
    return None


def table(name: str, title: str, results: list[Result], star: bool) -> Table:
    """The report's rows in its order, then any others."""
    order = list(load_original()[name]["rows"])
    ranked = sorted(results, key=lambda one: order.index(one.run.name) if one.run.name in order else len(order))
    scores = [result.metrics[SCORE] for result in ranked]
    printed = starred(scores) if star else [f"{score:.2f}" for score in scores]
    columns = (*load_original()[name]["columns"], "95 % interval", "Report", "Difference")
    rows = [_row(result, score) for result, score in zip(ranked, printed, strict=True)]
    return Table(f"{title}. {load_original()[name]['caption']}", columns, tuple(rows))


def _row(result: Result, score: str) -> tuple[str, ...]:
    label, lr, decay, temperature, epochs = _settings(result)
    numbers = result.metrics
    between = f"{numbers[f'{SCORE}_low']:.2f} to {numbers[f'{SCORE}_high']:.2f}"
    cells = (label, scientific(lr), scientific(decay), plain(temperature), plain(epochs), score, between)
    return cells + beside(numbers[SCORE], reported(result))


def claims(results: list[Result], seed: int) -> list[str]:
    """What the report says of these rows, where both are there as it set them."""
    by_name, lines = {result.run.name: result for result in results if reported(result) is not None}, []
    for claim in answerable(CLAIMS, by_name):
        first, second = by_name[claim.first], by_name[claim.second]
        hits = _hits(first) - _hits(second)
        draws = bootstrap_means(hits, seed=seed)
        lines.append(
            claim.line(reported(first) - reported(second), first.metrics[SCORE] - second.metrics[SCORE], draws)
        )
    return lines


def _hits(result: Result) -> np.ndarray:
    """100 for every image whose caption came first, else 0."""
    found = read_found(Path(result.run.artifacts["predictions"]))
    return np.array([100.0 * (row["image_to_text_rank"] == 1) for row in found])


@cache
def read_found(path: Path) -> list[dict]:
    """Every validation image's caption, its ranks, and the images nearest to the caption."""
    return pq.read_table(path).to_pylist()


def section(few: list[Result], grid: list[Result], manifest: Manifest, seed: int) -> Section:
    """Tables 4 and 5 with what belongs to them, from the runs of each."""
    tables = {TABLE4: table(TABLE4, "Table 4", few, False), TABLE5: table(TABLE5, "Table 5", grid, True)}
    folder = FIGURES / "retrieval"
    recall, sheet = folder / "r_at_1_per_epoch.png", folder / "found.png"
    draw_recall(recall, [(_label(one), one) for one in [*few, *grid]])
    best = max([*few, *grid], key=lambda one: one.metrics[SCORE])
    draw_found(sheet, _label(best), manifest.split("val"), read_found(Path(best.run.artifacts["predictions"])))
    _write_curves([*few, *grid])
    asked, stated = few[0], claims([*few, *grid], seed)
    lines = [
        "## Retrieval",
        "",
        f"Two linear projections over frozen class-token states of `{display_name(asked.run.inputs['backbone'])}`, "
        f"trained on {asked.run.params['views']} cached views of every training image (epoch e sees view e mod "
        f"{asked.run.params['views']}) with in-batch contrast.",
        "",
        *(line for one in tables.values() for line in (one.markdown(), "")),
        f"R@1: share of {asked.metrics['gallery']} validation images whose own caption is the nearest of all "
        f"{asked.metrics['gallery']} (image to text, one caption an image); a tie counts against us. The interval is a "
        "bootstrap over images, without the randomness of training. R@5, R@10, median and mean rank, and the same from "
        "text to image, are in the records. *Report* and *Difference* as in Table 1.",
        "",
        *_unknown(asked),
        *(["What the report says of these rows:", "", *stated, ""] if stated else []),
        image("R@1 per epoch for every row", recall),
        "",
        image("Captions and the five images nearest to each", sheet),
        "",
    ]
    kept = (SCORE, f"{SCORE}_low", f"{SCORE}_high", "image_to_text_r_at_5", "text_to_image_r_at_1")
    metrics = {one.run.name: {key: one.metrics[key] for key in kept} for one in [*few, *grid]}
    return Section(lines, tables, metrics, {best.run.identity: [recall, sheet]})


def _unknown(result: Result) -> list[str]:
    share, words = float(result.run.inputs["unknown_share"]), result.run.inputs["unknown_words"].split()
    if not share:
        return []
    return [f"{share:.1%} of the captions' words are unknown to this BLIP, such as {', '.join(words)}.", ""]


def _label(result: Result) -> str:
    """A row in a few words."""
    label, lr, decay, temperature, epochs = _settings(result)
    if lr is None:
        return "provided"
    start = "scratch" if label == SCRATCH else "finetuned"
    return f"{start}, lr {scientific(lr)}, wd {scientific(decay)}, T {temperature}, {epochs} epochs"


def _write_curves(results: list[Result]) -> None:
    """Per-epoch figures as CSV, a file a row."""
    for one in results:
        lines = [f"{row['epoch']},{row['train_loss']},{row[SCORE]}" for row in one.run.history]
        if lines:
            write_text(
                CURVES / "retrieval" / f"{one.run.name}.csv", "\n".join(["epoch,train_loss,r_at_1", *lines]) + "\n"
            )
