"""The attention section: pictures that the stages drew, and what they measured on the validation images."""

from pathlib import Path
from typing import Any

import pandas as pd

from stages.attention import short_name
from stages.report.comparison import result_numbers
from stages.report.numbers import format_interval
from stages.report.results import Result
from stages.report.section import Inputs, Section, render
from stages.report.significance import Metric
from stages.report.tables import Table

CLASS_TABLE = "class_token_attention"
WORD_TABLE = "caption_attention"
TASKS = {  # with the name of their table in `reports/results.csv`
    "position_similarity": "position_similarity",
    "class_attention": CLASS_TABLE,
    "caption_attention": WORD_TABLE,
}
SECOND = "second_captioner"  # a task of pictures alone
HEADLINES = {"class_attention": ("mean_mass", "hit"), "caption_attention": ("class_mass", "color_mass")}
WORD_KINDS = {
    "class": "Class names",
    "color": "Colors",
    "end": "<end>, on all objects",
    "other": "Other words, on all objects",
}


def position_runs(sources: list[str]) -> list[str]:
    """Names of the runs of `position_similarity`, one per ViT."""
    return list(dict.fromkeys(short_name(source) for source in sources))


def _attention_cells(metrics: dict[str, float], key: str) -> dict[str, str]:
    """The cells that both tables have, by column."""
    return {
        "Attention on the object (%)": f"{metrics[f'{key}_mass']:.1f}",
        "95 % interval": format_interval(metrics, f"{key}_mass", 1),
        "Object area (%)": f"{metrics[f'{key}_area']:.1f}",
        "Times uniform attention": f"{metrics[f'{key}_times']:.1f} ({format_interval(metrics, f'{key}_times', 1)})",
    }


def class_table(results: list[Result]) -> Table:
    """How much of the class token's attention is on the object, one row per model and kind of map."""
    rows = []
    for result in results:
        metrics = result.metrics
        block = result.run.params["block"]
        maps = {"mean": "last block" if block == -1 else f"block {block}", "rollout": "rollout"}
        for key, label in maps.items():
            if f"{key}_mass" in metrics:
                # The pointing game is measured on the mean of the heads only.
                hit = f"{metrics['hit']:.1f} ({format_interval(metrics, 'hit', 1)})" if key == "mean" else "-"
                cells = _attention_cells(metrics, key)
                rows.append({"ViT": f"{result.name}, {label}", **cells, "Pointing game (%)": hit})
    return Table("Class token: where its attention to the patches lies", pd.DataFrame(rows, dtype=object), ("ViT",))


def word_table(metrics: dict[str, float]) -> Table:
    """How much of the decoder's attention is on the object that a word names, one row per kind of word."""
    rows = []
    for kind, label in WORD_KINDS.items():
        if f"{kind}_mass" in metrics:
            difference = metrics[f"{kind}_more"]
            low = metrics[f"{kind}_more_low"]
            high = metrics[f"{kind}_more_high"]
            row = {
                "Words": label,
                "Count": str(int(metrics[f"{kind}_count"])),
                **_attention_cells(metrics, kind),
                "Other words' attention on it (%)": f"{metrics[f'{kind}_others']:.1f}",
                "Difference": f"{difference:+.1f} ({low:+.1f} to {high:+.1f})",
            }
            rows.append(row)
    caption = "Captions: where the decoder's attention to the patches lies, word by word"
    return Table(caption, pd.DataFrame(rows, dtype=object), ("Words",))


def headline_metrics(results: list[Result]) -> dict[str, dict[str, Any]]:
    """The headline metrics by task and run, for `dvc metrics`."""
    headline: dict[str, dict[str, Any]] = {}
    for result in results:
        keys = HEADLINES.get(result.run.task, ())
        metrics = {key: result.metrics[key] for key in keys if key in result.metrics}
        if metrics:
            headline.setdefault(result.run.task, {})[result.name] = metrics
    return headline


def section(inputs: Inputs, metrics: dict[str, Metric]) -> Section:
    """All parts on attention. Their intervals are in the runs' own metrics, so `metrics` has nothing for them."""
    positions, class_tokens, captions = (inputs.results.get(task, []) for task in TASKS)
    second = inputs.results.get(SECOND, [])
    measured = [result for result in class_tokens if "mean_mass" in result.metrics]
    word_metrics = captions[0].metrics if captions else {}
    tables = {CLASS_TABLE: class_table(measured), WORD_TABLE: word_table(word_metrics)}
    text = render(
        "attention.md",
        skipped=inputs.skipped,
        positions=positions,
        class_tokens=class_tokens,
        class_table=tables[CLASS_TABLE],
        class_images=measured[0].metrics["images"] if measured else 0,
        captions=captions,
        word_table=tables[WORD_TABLE],
        second=second,
    )
    results = [*positions, *class_tokens, *captions]
    return Section(
        text,
        tables={name: table for name, table in tables.items() if table},
        numbers=[record for result in results for record in result_numbers(TASKS[result.run.task], result)],
        metrics=headline_metrics(results),
        figures={
            result.run_id: [Path(path) for path in result.run.artifacts.values() if path.endswith(".png")]
            for result in [*results, *second]
        },
    )
