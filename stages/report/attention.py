"""The attention section: pictures that the stages drew, and what they measured on the validation images."""

from pathlib import Path
from typing import Any

from stages.attention import short_name
from stages.params.model_source import display_name
from stages.report.numbers import format_interval
from stages.report.results import Result
from stages.report.section import Section, image
from stages.report.tables import Table

CLASS_TABLE = "class_token_attention"
WORD_TABLE = "caption_attention"
TASKS = ("position_similarity", "class_attention", "caption_attention")
TITLES = {"class_attention": "### Class token", "caption_attention": "### Captions, word by word"}
WORD_KINDS = {
    "class": "Class names",
    "color": "Colors",
    "end": "`<end>`, on all objects",
    "other": "Other words, on all objects",
}
ATTENTION_COLUMNS = ("Attention on the object (%)", "95 % interval", "Object area (%)", "Times uniform attention")


def position_runs(backbone: str, others: list[str]) -> list[str]:
    """Names of the runs of `position_similarity`."""
    return list(dict.fromkeys(short_name(source) for source in (backbone, *others)))


def position_lines(results: list[Result]) -> list[str]:
    """Position embeddings: one paragraph and the pictures of each ViT."""
    lines = ["### Position embeddings", ""]
    for result in results:
        name = display_name(result.run.inputs["backbone"])
        metrics = result.metrics
        if not metrics:
            lines += [f"`{name}` has no learned position embeddings to show.", ""]
            continue
        lines += [
            f"`{name}`: for {metrics['neighbors']:.0f} % of the patches, the patch with the most similar embedding is "
            f"a neighbor (by chance {metrics['by_chance']:.0f} %). The rank correlation of similarity and distance is "
            f"{metrics['rank_correlation']:+.2f}. The original says that the embeddings show the image's grid "
            f"structure: {grid_verdict(metrics)}.",
            "",
        ]
        for grid, path in result.run.artifacts.items():
            lines += [image(f"Position embeddings, {grid} patches", Path(path)), ""]
    return lines


def grid_verdict(metrics: dict[str, float]) -> str:
    """How clearly the embeddings of neighbors are similar."""
    if metrics["neighbors"] > 90 and metrics["rank_correlation"] < -0.5:
        return "these do"
    if metrics["neighbors"] > 2 * metrics["by_chance"] and metrics["rank_correlation"] < 0:
        return "these do, faintly"
    return "these do not"


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
                rows.append((f"{result.run.name}, {label}", *_attention_cells(metrics, key), hit))
    columns = ("ViT", *ATTENTION_COLUMNS, "Pointing game (%)")
    return Table("Class token: where its attention to the patches lies", columns, tuple(rows))


def _attention_cells(metrics: dict[str, Any], key: str) -> tuple[str, ...]:
    """The cells under `ATTENTION_COLUMNS`."""
    return (
        f"{metrics[f'{key}_mass']:.1f}",
        format_interval(metrics, f"{key}_mass", 1),
        f"{metrics[f'{key}_area']:.1f}",
        f"{metrics[f'{key}_times']:.1f} ({format_interval(metrics, f'{key}_times', 1)})",
    )


def attention_verdict(metrics: dict[str, float], key: str) -> str:
    """The attention on the object in words, compared with uniform attention by its interval."""
    if metrics[f"{key}_times_low"] > 1:
        comparison = "more than uniform attention"
    elif metrics[f"{key}_times_high"] < 1:
        comparison = "less than uniform attention"
    else:
        comparison = "not significantly different from uniform attention"
    return f"{metrics[f'{key}_mass']:.0f} % on {metrics[f'{key}_area']:.0f} % of the area, {comparison}"


def class_lines(results: list[Result], table: Table) -> list[str]:
    """The class token: the table, its explanation, and one picture per model."""
    lines = [TITLES["class_attention"], ""]
    measured = [result for result in results if "mean_mass" in result.metrics]
    if measured:
        verdicts = [f"{result.run.name}: {attention_verdict(result.metrics, 'mean')}" for result in measured]
        lines += [
            table.markdown(),
            "",
            f"Means over {measured[0].metrics['images']} validation images with masks, without void pixels; intervals "
            "are bootstraps over images. *Times uniform attention*: attention on the object divided by the object's "
            "area. *Pointing game*: share of images whose most attended patch has its center on the object; by chance, "
            "it equals the area.",
            "",
            "The original says that the class token attends to the animals' faces, with a few stray patches. "
            f"Here, on the whole object: {'; '.join(verdicts)}.",
            "",
        ]
    else:
        lines += ["Not measured: no masks tell objects from a class `background`.", ""]
    for result in results:
        picture = Path(result.run.artifacts["picture"])
        lines += [image(f"Attention of the class token, {result.run.name}", picture), ""]
    return lines


def word_table(result: Result) -> Table:
    """How much of the decoder's attention is on the object that a word names, one row per kind of word."""
    metrics = result.metrics
    rows = []
    for kind, label in WORD_KINDS.items():
        if f"{kind}_mass" in metrics:
            difference = metrics[f"{kind}_mass"] - metrics[f"{kind}_others"]
            low = metrics[f"{kind}_more_low"]
            high = metrics[f"{kind}_more_high"]
            row = (
                label,
                str(int(metrics[f"{kind}_count"])),
                *_attention_cells(metrics, kind),
                f"{metrics[f'{kind}_others']:.1f}",
                f"{difference:+.1f} ({low:+.1f} to {high:+.1f})",
            )
            rows.append(row)
    columns = ("Words", "Count", *ATTENTION_COLUMNS, "Other words' attention on it (%)", "Difference")
    return Table("Captions: where the decoder's attention to the patches lies, word by word", columns, tuple(rows))


def word_lines(result: Result, table: Table) -> list[str]:
    """Captions: the table, its explanation, and one picture per image."""
    metrics = result.metrics
    params = result.run.params
    lines = [TITLES["caption_attention"], ""]
    if table.rows:
        labels = {"class": "class names", "color": "colors", "end": "`<end>` on all objects"}
        verdicts = [
            f"{label}: {attention_verdict(metrics, kind)}"
            for kind, label in labels.items()
            if f"{kind}_mass" in metrics
        ]
        layer = "last layer" if params["layer"] == -1 else f"layer {params['layer']}"
        head = "mean of its heads" if params["head"] == "mean" else f"head {params['head']}"
        # The images of BLIP have a class token, those of CATR have none.
        class_token = (
            f"{metrics['class_token']:.0f} % of the attention goes to the image's class token and is left out. "
            if metrics["class_token"]
            else ""
        )
        lines += [
            table.markdown(),
            "",
            f"Cross-attention of the decoder's {layer}, {head}, at the step that generates a word, over "
            f"{metrics['images']} validation images' `{params['cell']}` captions. A word that names a class, or the "
            "color of an object, is compared with that object's mask, if the image has it. *Other words' attention on "
            f"it* is the mean of the caption's other words on the same mask. {class_token}Intervals are bootstraps "
            "over images.",
            "",
            "The original says that nouns highlight their objects, and that `<end>` attends to the main object and its "
            f"surroundings. Here: {'; '.join(verdicts)}.",
            "",
        ]
    for name, path in result.run.artifacts.items():
        if path.endswith(".png"):
            lines += [image(f"{name}, word by word", Path(path)), ""]
    return lines


def section(results: dict[str, list[Result]], skipped: dict[str, str]) -> Section:
    """All parts on attention; `skipped` maps a stage that had nothing to do to its reason."""
    lines = ["## Attention", "", *position_lines(results.get("position_similarity", []))]
    tables = {}
    if "class_attention" in results:
        tables[CLASS_TABLE] = class_table(results["class_attention"])
        lines += class_lines(results["class_attention"], tables[CLASS_TABLE])
    for result in results.get("caption_attention", []):
        tables[WORD_TABLE] = word_table(result)
        lines += word_lines(result, tables[WORD_TABLE])
    for task, title in TITLES.items():
        if task in skipped:
            lines += [title, "", f"Left out: {skipped[task]}.", ""]
    metrics = {}
    figures = {}
    for result in (result for task in TASKS for result in results.get(task, [])):
        if result.metrics:
            metrics[f"{result.run.task}/{result.run.name}"] = dict(result.metrics)
        pictures = [Path(path) for path in result.run.artifacts.values() if path.endswith(".png")]
        figures[result.run.identity] = pictures
    return Section(lines, {name: table for name, table in tables.items() if table.rows}, metrics, figures)
