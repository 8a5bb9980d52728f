"""The captioning section: Tables 2 and 3, their comparison with the original, BLEU against temperature, examples."""

from dataclasses import replace
from typing import Any

import pandas as pd

from stages.core.figures import LABEL_LENGTH
from stages.params.experiment import Experiment
from stages.report.comparison import OriginalTable, Row, build_section, original_value
from stages.report.contact_sheets import plot_captions
from stages.report.curves import plot_bleu
from stages.report.numbers import MISSING, format_optional
from stages.report.original import load_original
from stages.report.plots import plot_text, write_plot
from stages.report.predictions import read_captions
from stages.report.results import Result, unique_labels
from stages.report.section import FIGURES, Inputs, Section, render
from stages.report.significance import Metric
from stages.report.tables import Table

TABLE2 = "table2_captioning"
TABLE3 = "table3_captioning_grid"
LABELS = {"greedy": "Greedy search", "top_k": "Top-K sampling", "top_p": "Top-p sampling", "beam": "Beam search"}
NAMING_TABLE = "caption_naming"

EXAMPLES = ("greedy", "k50_t1")  # cells whose captions are printed, besides those of the best cell


def settings(result: Result) -> tuple[str, str, str, str]:
    """The first cells of a row: type, K, temperature, prompt."""
    params = result.run.params
    # The column K also holds the parameter of decodings that the original does not have.
    widths = {"top_p": f"p = {params.get('p')}", "beam": f"{params.get('beams')} beams"}
    width = widths.get(params["type"], format_optional(params.get("k")))
    return LABELS[params["type"]], width, format_optional(params.get("temperature")), params["prompt"]


def build_tables(cells: list[Result], metric: Metric, experiment: Experiment) -> list[OriginalTable]:
    """Tables 2 and 3; cells that are in neither are compared with Table 3's."""
    names = load_original()[TABLE2]["rows"]
    tables = []
    for table, starred in ((TABLE2, False), (TABLE3, True)):
        rows = []
        for cell in cells:
            if (cell.name in names) == (table == TABLE2):
                more = {}
                if "bleu_end_token" in cell.metrics:
                    more["BLEU of captions cut at the end token (%)"] = f"{cell.metrics['bleu_end_token']:.2f}"
                original = original_value(cell, experiment)
                rows.append(Row(cell, settings(cell), original, metric.interval(cell), more))
        if rows:
            left = ("Type", "prompt")
            tables.append(OriginalTable(table, rows, metric, experiment.profile, "sampling", left, starred))
    return tables


def naming_table(cells: list[Result]) -> Table:
    """What the captions say of generated scenes, which tell what their captions should name; one row per cell."""
    rows = [
        {
            "Decoding": describe(cell),
            "Class named (%)": f"{cell.metrics['class_named']:.1f}",
            "Color named (%)": f"{cell.metrics['color_named']:.1f}",
            "Place right (%)": _format_right(cell, "place"),
            "Relation right (%)": _format_right(cell, "relation"),
        }
        for cell in cells
        if "class_named" in cell.metrics
    ]
    return Table("What the captions name", pd.DataFrame(rows, dtype=object), ("Decoding",))


def _format_right(cell: Result, kind: str) -> str:
    """A percentage of right captions and the number of captions that it is of, per seed; a dash for none."""
    right = cell.metrics.get(f"{kind}_right")
    count = round(cell.metrics[f"{kind}_named"] * cell.metrics["images"] / 100)
    return MISSING if right is None else f"{right:.1f} of {count}"


def overrun_rows() -> list[dict[str, Any]]:
    """The original's rows of sampling in Table 2, whose printed BLEU is of captions that run on past their end."""
    columns = ("k", "temperature", "bleu")
    return [
        dict(zip(columns, (k, temperature, bleu), strict=True))
        for label, k, temperature, _, bleu in load_original()[TABLE2]["rows"].values()
        if label == LABELS["top_k"]
    ]


def section(inputs: Inputs, metrics: dict[str, Metric]) -> Section:
    """Tables 2 and 3, their comparisons and figures."""
    cells = inputs.results["captioning"]
    tables = build_tables(cells, metrics["captioning"], inputs.experiment)
    naming = naming_table(cells)
    best = max(cells, key=lambda cell: cell.metrics["bleu"])
    figures = [FIGURES / "captioning/bleu_against_temperature.png", FIGURES / "captioning/captions.png"]
    plot_bleu(figures[0], [(row.result, row.interval) for table in tables for row in table.rows])
    write_plot("captioning", bleu_rows(cells))
    plot_captions(figures[1], inputs.manifest.split("val"), _example_captions(cells, best))
    text = render(
        "captioning.md",
        run=cells[0].run,
        images=cells[0].metrics["images"],
        tables=tables,
        naming=naming,
        overruns=overrun_rows(),
    )
    return replace(build_section(text, tables, {best.run_id: figures}), tables={NAMING_TABLE: naming} if naming else {})


def _example_captions(cells: list[Result], best: Result) -> dict[str, dict[str, tuple[str, str]]]:
    """Captions and references by image ID of `EXAMPLES` and the best cell, each with its first seed, by title."""
    captions = read_captions(best.predictions)
    examples = [cell for cell in cells if cell is best or cell.name in EXAMPLES]
    labels = unique_labels(examples, describe)
    return {
        f"{label} (best)" if cell is best else label: captions[cell.name, cell.run.seed]
        for label, cell in zip(labels, examples, strict=True)
    }


def bleu_rows(cells: list[Result]) -> list[dict[str, Any]]:
    """A row per cell and seed for `dvc plots`; the cells of a line differ in their temperature only."""
    rows = []
    for cell in cells:
        line = plot_text(describe(cell, with_temperature=False), LABEL_LENGTH)
        for run in cell.runs:
            rows.append(
                {
                    "line": line,
                    "run": run.name,
                    "seed": run.seed,
                    "temperature": run.params.get("temperature"),
                    "bleu": run.metrics["bleu"],
                }
            )
    return rows


def describe(cell: Result, with_temperature: bool = True) -> str:
    """A cell in a few words, such as `Top-K sampling, K = 5, T = 0.1, "a picture of"`."""
    label, width, temperature, prompt = settings(cell)
    parts = [label]
    if width != MISSING:
        parts.append(f"K = {width}" if "k" in cell.run.params else width)
    if with_temperature and temperature != MISSING:
        parts.append(f"T = {temperature}")
    return ", ".join([*parts, f'"{prompt}"'])
