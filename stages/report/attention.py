"""The attention section: pictures made by the stages, and what was measured with them."""

from pathlib import Path

from stages.attention import short_name
from stages.params.model_source import display_name
from stages.report.results import Result
from stages.report.section import Section, image
from stages.report.tables import Table

CLASS_TABLE, WORD_TABLE = "class_token_attention", "caption_attention"
TASKS = ("position_similarity", "class_attention", "caption_attention")
CLASS_TITLE, WORD_TITLE = "### Class token", "### Captions, word by word"
KINDS = {
    "class": "Names of classes",
    "color": "Colors",
    "end": "`<end>`, on all objects",
    "other": "Other words, on all objects",
}


def positions_lines(results: list[Result]) -> list[str]:
    """Position embeddings: a sentence and the pictures of each ViT."""
    lines = ["### Position embeddings", ""]
    for one in results:
        numbers = one.metrics
        if not numbers:
            lines += [f"`{display_name(one.run.inputs['backbone'])}` has no learned position embeddings to show.", ""]
            continue
        lines += [
            f"`{display_name(one.run.inputs['backbone'])}`: for {numbers['neighbors']:.0f} % of the patches the most "
            f"similar other one touches them (by chance {numbers['by_chance']:.0f} %); the rank correlation of "
            f"similarity and distance is {numbers['rank_correlation']:+.2f}. The report says that the embeddings "
            f"show the image's grid structure: {grid_verdict(numbers)}.",
            "",
        ]
        pictures = [(size, Path(path)) for size, path in one.run.artifacts.items()]
        lines += [line for size, path in pictures for line in (image(f"Position embeddings, {size} patches", path), "")]
    return lines


def grid_verdict(numbers: dict[str, float]) -> str:
    """How clearly neighbors are alike."""
    if numbers["neighbors"] > 90 and numbers["rank_correlation"] < -0.5:
        return "so do these"
    if numbers["neighbors"] > 2 * numbers["by_chance"] and numbers["rank_correlation"] < 0:
        return "these do faintly"
    return "these do not"


def class_table(results: list[Result]) -> Table:
    """How much of the class token's attention lies on the object, a row a model and a way to look."""
    rows = []
    for one in results:
        numbers, block = one.metrics, one.run.params["block"]
        for kind, words in (("mean", "last block" if block == -1 else f"block {block}"), ("rollout", "rollout")):
            if f"{kind}_mass" in numbers:
                hit = f"{numbers['hit']:.1f} ({numbers['hit_low']:.1f} to {numbers['hit_high']:.1f})"
                rows.append((f"{one.run.name}, {words}", *_share(numbers, kind), hit if kind == "mean" else "-"))
    columns = (
        "ViT",
        "Mass on the object (%)",
        "95 % interval",
        "Its area (%)",
        "Times an even spread",
        "Most on it (%)",
    )
    return Table("Class token: where its attention to the patches lies", columns, tuple(rows))


def _share(numbers: dict[str, float], kind: str) -> tuple[str, ...]:
    times = (
        f"{numbers[f'{kind}_times']:.1f} ({numbers[f'{kind}_times_low']:.1f} to {numbers[f'{kind}_times_high']:.1f})"
    )
    between = f"{numbers[f'{kind}_mass_low']:.1f} to {numbers[f'{kind}_mass_high']:.1f}"
    return f"{numbers[f'{kind}_mass']:.1f}", between, f"{numbers[f'{kind}_area']:.1f}", times


def class_lines(results: list[Result], made: Table) -> list[str]:
    """The class token: the table, a sentence, a picture a model."""
    lines = [CLASS_TITLE, ""]
    measured = [one for one in results if "mean_mass" in one.metrics]
    if measured:
        told = [f"{one.run.name}: {verdict(one.metrics, 'mean')}" for one in measured]
        lines += [
            made.markdown(),
            "",
            f"Of {measured[0].metrics['images']} validation images with masks; void pixels are not counted, intervals "
            "are bootstraps over images. *Most on it*: the middle of the patch that gets most is on the object; by "
            "chance, as often as its area says.",
            "",
            "The report says that the class token's attention lies on the animals' faces, with a few stray patches. "
            f"Here, on the whole object: {'; '.join(told)}.",
            "",
        ]
    else:
        lines += ["Not measured: no masks tell objects from a class `background`.", ""]
    for one in results:
        lines += [image(f"Attention of the class token, {one.run.name}", Path(one.run.artifacts["picture"])), ""]
    return lines


def verdict(numbers: dict[str, float], kind: str) -> str:
    """A share in words, judged by its interval."""
    low, high = numbers[f"{kind}_times_low"], numbers[f"{kind}_times_high"]
    how = (
        "more than an even spread"
        if low > 1
        else "less than an even spread"
        if high < 1
        else "not to be told from an even spread"
    )
    return f"{numbers[f'{kind}_mass']:.0f} % on {numbers[f'{kind}_area']:.0f} % of the area, {how}"


def word_table(result: Result) -> Table:
    """How much of the decoder's attention lies on what a word is about, a row a kind of word."""
    numbers, rows = result.metrics, []
    for kind, words in KINDS.items():
        if f"{kind}_mass" in numbers:
            more = numbers[f"{kind}_mass"] - numbers[f"{kind}_others"]
            between = f"{more:+.1f} ({numbers[f'{kind}_more_low']:+.1f} to {numbers[f'{kind}_more_high']:+.1f})"
            own = (f"{numbers[f'{kind}_others']:.1f}", between)
            rows.append((words, str(int(numbers[f"{kind}_count"])), *_share(numbers, kind), *own))
    columns = ("Words", "Count", "Mass on the object (%)", "95 % interval", "Its area (%)", "Times an even spread")
    columns += ("Other words' mass on it (%)", "Difference")
    return Table("Captions: where the decoder's attention to the patches lies, word by word", columns, tuple(rows))


def word_lines(result: Result, made: Table) -> list[str]:
    """Captions: the table, a sentence, a picture an image."""
    numbers, asked = result.metrics, result.run.params
    lines = [WORD_TITLE, ""]
    if made.rows:
        told = [
            f"{words}: {verdict(numbers, kind)}"
            for kind, words in (("class", "names of classes"), ("color", "colors"), ("end", "`<end>` on all objects"))
            if f"{kind}_mass" in numbers
        ]
        layer = "last layer" if asked["layer"] == -1 else f"layer {asked['layer']}"
        head = "mean of its heads" if asked["head"] == "mean" else f"head {asked['head']}"
        lines += [
            made.markdown(),
            "",
            f"Cross attention of the decoder's {layer}, {head}, in the step that writes a word, over "
            f"{numbers['images']} validation images' `{asked['cell']}` captions. A word that names a class, or the "
            "color of one, is held against that object's mask, where the image has it; *other words' mass* is what "
            f"the rest of the caption puts on the same mask. {_elsewhere(numbers)}Intervals are "
            "bootstraps over images.",
            "",
            "The report says that nouns light up their objects, and that `<end>` looks at the main object and its "
            f"surroundings. Here: {'; '.join(told)}.",
            "",
        ]
    pictures = [(name, Path(path)) for name, path in result.run.artifacts.items() if path.endswith(".png")]
    return lines + [line for name, path in pictures for line in (image(f"{name}, word by word", path), "")]


def section(results: dict[str, list[Result]], absent: dict[str, str]) -> Section:
    """All that was looked at; `absent` says of a stage why there is nothing to look at."""
    positions, tokens, captions = (results.get(task, []) for task in TASKS)
    tables, lines = {}, ["## Attention", "", *positions_lines(positions)]
    if tokens:
        made = class_table(tokens)
        tables |= {CLASS_TABLE: made} if made.rows else {}
        lines += class_lines(tokens, made)
    for words in captions:
        made = word_table(words)
        tables |= {WORD_TABLE: made} if made.rows else {}
        lines += word_lines(words, made)
    for task, title in (("class_attention", CLASS_TITLE), ("caption_attention", WORD_TITLE)):
        if task in absent:
            lines += [title, "", f"Left out: {absent[task]}.", ""]
    every = [*positions, *tokens, *captions]
    metrics = {f"{one.run.task}/{one.run.name}": dict(one.metrics) for one in every if one.metrics}
    figures = {
        one.run.identity: [Path(path) for path in one.run.artifacts.values() if path.endswith(".png")] for one in every
    }
    return Section(lines, tables, metrics, figures)


def position_runs(backbone: str, others: list[str]) -> list[str]:
    """Names of the runs of `position_similarity`."""
    return list(dict.fromkeys(short_name(source) for source in (backbone, *others)))


def _elsewhere(numbers: dict[str, float]) -> str:
    """What BLIP's class token gets; CATR's images have none."""
    if not numbers["class_token"]:
        return ""
    return f"{numbers['class_token']:.0f} % of the attention goes to the image's class token and is left out. "
