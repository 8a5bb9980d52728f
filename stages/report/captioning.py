"""The captioning section: Tables 2 and 3, the original's claims, BLEU against temperature, example captions."""

from collections import defaultdict
from functools import cache
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from stages.captioning import BOOTSTRAP
from stages.captioning.bleu import bootstrap_bleu, count_ngrams
from stages.report.claims import Claim, claim_lines
from stages.report.contact_sheets import plot_captions
from stages.report.curves import plot_bleu
from stages.report.numbers import format_optional, star_highest
from stages.report.original import comparison_cells, comparison_table, load_original, original_number, sort_as_original
from stages.report.results import Result
from stages.report.section import FIGURES, Inputs, Section, render, select_metrics
from stages.report.tables import Table

TABLE2 = "table2_captioning"
TABLE3 = "table3_captioning_grid"
LABELS = {"greedy": "Greedy search", "top_k": "Top-K sampling", "top_p": "Top-p sampling", "beam": "Beam search"}

LENGTHS = (10, 30)  # the original's min_length and max_length, in tokens
EXAMPLES = ("greedy", "k50_t1")  # cells whose captions are printed, besides those of the best cell

CLAIMS = (
    Claim("Lowering the temperature raises BLEU much (K = 50, T = 0.1 against 1.0)", "k50_t01", "k50_t1", +1),
    Claim("K matters less: 5 is a little better than 50 (T = 0.1)", "k5_t01", "k50_t01", +1),
    Claim(
        "The prompt matters less: 'this image shows' is a little worse than 'a picture of'",
        "k50_t07_this_image_shows",
        "k50_t07",
        -1,
    ),
    Claim("The best setting (K = 5, T = 0.1) is a little above greedy", "k5_t01", "greedy", +1),
)


def original_bleu(result: Result) -> float | None:
    """The BLEU that the original prints for a cell; None if the cell has other settings than the original's."""
    params = result.run.params
    if (params["min_length"], params["max_length"]) != LENGTHS:
        return None
    return original_number([TABLE2, TABLE3], result.run.name, _settings(result))


def _settings(result: Result) -> list:
    """The first cells of the row: type, K, temperature, prompt."""
    params = result.run.params
    return [LABELS[params["type"]], params.get("k"), params.get("temperature"), params["prompt"]]


def table2(results: list[Result]) -> Table:
    """Table 2: the original's rows in its order."""
    rows = load_original()[TABLE2]["rows"]
    cells = [cell for cell in sort_as_original(results, TABLE2) if cell.run.name in rows]
    return _table("Table 2", TABLE2, cells, [f"{cell.metrics['bleu']:.2f}" for cell in cells])


def table3(results: list[Result]) -> Table:
    """Table 3: the original's rows in its order, then all cells that are in neither table."""
    elsewhere = load_original()[TABLE2]["rows"]
    cells = [cell for cell in sort_as_original(results, TABLE3) if cell.run.name not in elsewhere]
    return _table("Table 3", TABLE3, cells, star_highest([cell.metrics["bleu"] for cell in cells]))


def _table(title: str, name: str, cells: list[Result], scores: list[str]) -> Table:
    # Only generated scenes tell what their captions should name.
    naming = {"class_named": "Class named (%)", "color_named": "Color named (%)"}
    naming = {key: column for key, column in naming.items() if cells and key in cells[0].metrics}
    rows = []
    for cell, score in zip(cells, scores, strict=True):
        label, k, temperature, prompt = _settings(cell)
        params = cell.run.params
        # The column K also holds the parameter of decodings that the original does not have.
        widths = {"top_p": f"p = {params.get('p')}", "beam": f"{params.get('beams')} beams"}
        width = widths.get(params["type"], format_optional(k))
        comparison = comparison_cells(cell.metrics, "bleu", original_bleu(cell))
        named = [f"{cell.metrics[key]:.1f}" for key in naming]
        rows.append((label, width, format_optional(temperature), f'"{prompt}"', score, *comparison, *named))
    return comparison_table(title, name, rows, *naming.values())


@cache
def read_captions(path: Path) -> dict[str, dict[str, tuple[str, str]]]:
    """Caption and reference by cell and image ID."""
    captions: dict[str, dict[str, tuple[str, str]]] = defaultdict(dict)
    for row in pq.read_table(path).to_pylist():
        captions[row["cell"]][row["image_id"]] = (row["caption"], row["reference"])
    return dict(captions)


def claims(results: list[Result], seed: int) -> list[str]:
    """What the original says of these cells."""

    @cache  # a cell may be in several claims
    def bleu_draws(path: Path, cell: str) -> np.ndarray:
        captions, references = zip(*read_captions(path)[cell].values(), strict=True)
        return bootstrap_bleu(count_ngrams(captions, [[reference] for reference in references]), seed=seed)

    def draw_differences(first: Result, second: Result) -> np.ndarray:
        # One seed resamples the same images for both cells: the differences are paired.
        return bleu_draws(first.predictions, first.run.name) - bleu_draws(second.predictions, second.run.name)

    originals = {cell.run.name: original_bleu(cell) for cell in results}
    return claim_lines(CLAIMS, results, originals, "bleu", draw_differences)


def section(inputs: Inputs) -> Section:
    """Tables 2 and 3 with their claims and figures."""
    results = inputs.results["captioning"]
    figures = [FIGURES / "captioning/bleu_against_temperature.png", FIGURES / "captioning/captions.png"]
    best = max(results, key=lambda cell: cell.metrics["bleu"])
    plot_bleu(figures[0], results)
    plot_captions(figures[1], inputs.manifest.split("val"), _example_captions(results, best))
    tables = {TABLE2: table2(results), TABLE3: table3(results)}
    checked_claims = claims(results, inputs.experiment.seed_for(BOOTSTRAP))
    text = render("captioning.md", run=results[0].run, tables=tables.values(), claims=checked_claims)
    keys = ("bleu", "bleu_low", "bleu_high", "bleu_all_references", "class_named", "color_named")
    return Section(text, tables, select_metrics(results, *keys), {best.run_id: figures})


def _example_captions(results: list[Result], best: Result) -> dict[str, dict[str, tuple[str, str]]]:
    """Captions and references by image ID of `EXAMPLES` and the best cell, by title."""
    captions = read_captions(best.predictions)
    results_by_name = {cell.run.name: cell for cell in results}
    columns = {}
    for name in dict.fromkeys((*EXAMPLES, best.run.name)):
        if name in results_by_name:
            title = describe(results_by_name[name])
            columns[f"{title} (best)" if name == best.run.name else title] = captions[name]
    return columns


def describe(cell: Result) -> str:
    """A cell in a few words, such as `Top-K sampling, K = 5, T = 0.1, "a picture of"`."""
    label, k, temperature, prompt = _settings(cell)
    parts = [label]
    if k:
        parts.append(f"K = {k}")
    if temperature:
        parts.append(f"T = {temperature}")
    return ", ".join([*parts, f'"{prompt}"'])
