"""The captioning section: Tables 2 and 3, BLEU against temperature, captions to look at."""

from collections import defaultdict
from functools import cache
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from stages.captioning.bleu import bootstrap_bleu, count_ngrams
from stages.data.manifest import Manifest
from stages.params.model_source import display_name
from stages.report.claims import Claim, answerable
from stages.report.contact_sheets import draw_bleu, draw_captions
from stages.report.numbers import beside, plain, starred
from stages.report.original import load_original
from stages.report.results import Result
from stages.report.section import FIGURES, Section, image
from stages.report.tables import Table

TABLE2, TABLE3 = "table2_captioning", "table3_captioning_grid"
LABELS = {"greedy": "Greedy search", "top_k": "Top-K sampling", "top_p": "Top-p sampling", "beam": "Beam search"}

LENGTHS = (10, 30)  # the report's, in tokens
SHOWN = ("greedy", "k50_t1")  # cells whose captions are shown, beside the best one's

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


def reported(result: Result) -> float | None:
    """What the report prints for this cell, if the cell is still set as there."""
    lengths = tuple(result.run.params[key] for key in ("min_length", "max_length"))
    for name in (TABLE2, TABLE3):
        row = load_original()[name]["rows"].get(result.run.name)
        if row and row[:4] == _settings(result) and lengths == LENGTHS:
            return row[4]
    return None


def _settings(result: Result) -> list:
    asked = result.run.params
    return [LABELS[asked["type"]], asked.get("k"), asked.get("temperature"), asked["prompt"]]


def table(name: str, title: str, results: list[Result], star: bool) -> Table:
    """The report's rows in its order; what it has not, in Table 3, behind them."""
    rows = load_original()[name]["rows"]
    others = load_original()[TABLE2]["rows"]
    own = [result for row in rows for result in results if result.run.name == row]
    if name == TABLE3:
        own += [result for result in results if result.run.name not in rows and result.run.name not in others]
    scores = [result.metrics["bleu"] for result in own]
    printed = starred(scores) if star else [f"{score:.2f}" for score in scores]
    columns = (*load_original()[name]["columns"], "95 % interval", "Report", "Difference")
    naming = bool(own) and "class_named" in own[0].metrics
    columns += ("Class named (%)", "Color named (%)") if naming else ()
    lines = [_row(result, score, naming) for result, score in zip(own, printed, strict=True)]
    return Table(f"{title}. {load_original()[name]['caption']}", columns, tuple(lines))


def _row(result: Result, score: str, naming: bool) -> tuple[str, ...]:
    label, k, temperature, prompt = _settings(result)
    asked, numbers = result.run.params, result.metrics
    width = {"top_p": f"p = {asked.get('p')}", "beam": f"{asked.get('beams')} beams"}.get(asked["type"], plain(k))
    between = f"{numbers['bleu_low']:.2f} to {numbers['bleu_high']:.2f}"
    cells = (label, width, plain(temperature), f'"{prompt}"', score, between)
    cells += beside(numbers["bleu"], reported(result))
    return cells + ((f"{numbers['class_named']:.1f}", f"{numbers['color_named']:.1f}") if naming else ())


@cache
def read_captions(path: Path) -> dict[str, dict[str, tuple[str, str]]]:
    """Caption and reference by cell and image id."""
    found: dict[str, dict[str, tuple[str, str]]] = defaultdict(dict)
    for row in pq.read_table(path).to_pylist():
        found[row["cell"]][row["image_id"]] = (row["caption"], row["reference"])
    return dict(found)


def claims(results: list[Result], seed: int) -> list[str]:
    """What the report says of these cells, where both are there as it set them."""
    by_name, lines = {result.run.name: result for result in results if reported(result) is not None}, []
    for claim in answerable(CLAIMS, by_name):
        first, second = by_name[claim.first], by_name[claim.second]
        found = first.metrics["bleu"] - second.metrics["bleu"]
        there = reported(first) - reported(second)
        lines.append(claim.line(there, found, _draws(first, seed) - _draws(second, seed)))
    return lines


@cache
def _counts(path: Path, cell: str):
    pairs = read_captions(path)[cell].values()
    return count_ngrams([caption for caption, _ in pairs], [[reference] for _, reference in pairs])


def _draws(result: Result, seed: int) -> np.ndarray:
    return bootstrap_bleu(_counts(Path(result.run.artifacts["predictions"]), result.run.name), seed=seed)


def section(results: list[Result], manifest: Manifest, seed: int) -> Section:
    """Tables 2 and 3 with what belongs to them."""
    tables = {TABLE2: table(TABLE2, "Table 2", results, False), TABLE3: table(TABLE3, "Table 3", results, True)}
    folder = FIGURES / "captioning"
    curve, sheet = folder / "bleu_against_temperature.png", folder / "captions.png"
    draw_bleu(curve, results)
    best = max(results, key=lambda result: result.metrics["bleu"])
    captions = read_captions(Path(best.run.artifacts["predictions"]))
    by_name = {result.run.name: result for result in results}
    shown = dict.fromkeys(name for name in (*SHOWN, best.run.name) if name in by_name)
    columns = {describe(by_name[name]) + " (best)" * (name == best.run.name): captions[name] for name in shown}
    draw_captions(sheet, manifest.split("val"), columns)
    asked = results[0].run
    stated = claims(results, seed)
    lines = [
        "## Captioning",
        "",
        f"Captions of {results[0].metrics['images']} validation images by `{display_name(asked.inputs['backbone'])}`, "
        f"{asked.params['min_length']} to {asked.params['max_length']} tokens with the prompt, which is removed from "
        "what is scored; every cell and image has a random stream of its own.",
        "",
        *(line for one in tables.values() for line in (one.markdown(), "")),
        "BLEU: nltk's corpus BLEU-4 without smoothing, lower case, words between white space, against one reference an "
        "image (drawn where the source has several); the interval is a bootstrap over images. BLEU-1 to 3 and the "
        f"score against all references are in the records. *Report* and *Difference* as in Table 1.{_naming(results)}",
        "",
        *(["What the report says of these cells:", "", *stated, ""] if stated else []),
        image("BLEU against temperature for each K", curve),
        "",
        image("Validation images with their captions", sheet),
        "",
    ]
    kept = ("bleu", "bleu_low", "bleu_high", "bleu_all_references", "class_named", "color_named")
    metrics = {one.run.name: {key: one.metrics[key] for key in kept if key in one.metrics} for one in results}
    return Section(lines, tables, metrics, {best.run.identity: [curve, sheet]})


def _naming(results: list[Result]) -> str:
    if "class_named" not in results[0].metrics:
        return ""
    return (
        " *Class named* is the share of captions that name the class of the largest thing in the scene, *color named* "
        "of those that name it with its color: BLEU hides a wrong class behind the right words around it."
    )


def describe(result: Result) -> str:
    """A cell in a few words."""
    label, k, temperature, prompt = _settings(result)
    parts = [label] + ([f"K = {k}"] if k else []) + ([f"T = {temperature}"] if temperature else [])
    return ", ".join(parts) + f', "{prompt}"'
