"""The attention section: pictures that the stages drew, and what they measured on the validation images."""

from pathlib import Path
from typing import Any

from stages.attention import short_name
from stages.report.numbers import format_interval
from stages.report.results import Result
from stages.report.section import Inputs, Section, render
from stages.report.tables import Table

CLASS_TABLE = "class_token_attention"
WORD_TABLE = "caption_attention"
TASKS = ("position_similarity", "class_attention", "caption_attention")
WORD_KINDS = {
    "class": "Class names",
    "color": "Colors",
    "end": "`<end>`, on all objects",
    "other": "Other words, on all objects",
}


def position_runs(sources: list[str]) -> list[str]:
    """Names of the runs of `position_similarity`, one per ViT."""
    return list(dict.fromkeys(short_name(source) for source in sources))


def grid_verdict(metrics: dict[str, float]) -> str:
    """Whether position embeddings show the image's grid; the thresholds are our reading of "clearly" and "at all"."""
    if metrics["neighbors"] > 90 and metrics["rank_correlation"] < -0.5:
        return "these do"
    if metrics["neighbors"] > 2 * metrics["by_chance"] and metrics["rank_correlation"] < 0:
        return "these do, faintly"
    return "these do not"


def attention_verdict(metrics: dict[str, float], key: str) -> str:
    """The attention on the object in words, compared with uniform attention by its interval."""
    if metrics[f"{key}_times_low"] > 1:
        comparison = "more than uniform attention"
    elif metrics[f"{key}_times_high"] < 1:
        comparison = "less than uniform attention"
    else:
        comparison = "not significantly different from uniform attention"
    return f"{metrics[f'{key}_mass']:.0f} % on {metrics[f'{key}_area']:.0f} % of the area, {comparison}"


def _attention_cells(metrics: dict[str, Any], key: str) -> dict[str, str]:
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
                rows.append({"ViT": f"{result.run.name}, {label}", **cells, "Pointing game (%)": hit})
    return Table.from_dicts("Class token: where its attention to the patches lies", rows)


def word_table(metrics: dict[str, Any]) -> Table:
    """How much of the decoder's attention is on the object that a word names, one row per kind of word."""
    rows = []
    for kind, label in WORD_KINDS.items():
        if f"{kind}_mass" in metrics:
            difference = metrics[f"{kind}_mass"] - metrics[f"{kind}_others"]
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
    return Table.from_dicts("Captions: where the decoder's attention to the patches lies, word by word", rows)


def section(inputs: Inputs) -> Section:
    """All parts on attention."""
    positions, class_tokens, captions = (inputs.results.get(task, []) for task in TASKS)
    measured = [result for result in class_tokens if "mean_mass" in result.metrics]
    word_metrics = captions[0].metrics if captions else {}
    labels = {"class": "class names", "color": "colors", "end": "`<end>` on all objects"}
    tables = {CLASS_TABLE: class_table(measured), WORD_TABLE: word_table(word_metrics)}
    text = render(
        "attention.md",
        skipped=inputs.skipped,
        positions=[
            (result.run, result.metrics, grid_verdict(result.metrics) if result.metrics else "") for result in positions
        ],
        class_tokens=class_tokens,
        class_table=tables[CLASS_TABLE],
        class_images=measured[0].metrics["images"] if measured else 0,
        class_verdicts=[f"{result.run.name}: {attention_verdict(result.metrics, 'mean')}" for result in measured],
        captions=captions,
        word_table=tables[WORD_TABLE],
        word_verdicts=[
            f"{label}: {attention_verdict(word_metrics, kind)}"
            for kind, label in labels.items()
            if f"{kind}_mass" in word_metrics
        ],
    )
    metrics = {}
    figures = {}
    for result in (*positions, *class_tokens, *captions):
        if result.metrics:
            metrics[f"{result.run.task}/{result.run.name}"] = result.metrics
        figures[result.run_id] = [Path(path) for path in result.run.artifacts.values() if path.endswith(".png")]
    return Section(text, {name: table for name, table in tables.items() if table.rows}, metrics, figures)
