"""Pictures of the captioning and retrieval tasks."""

import textwrap
from collections import defaultdict
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.ticker import FixedLocator, MaxNLocator, NullFormatter, StrMethodFormatter

from stages.core.figures import figure
from stages.data.images import read_image
from stages.data.manifest import Row, evenly_spaced
from stages.report.results import Result

CAPTIONED = 6  # validation images with their captions
ASKED = 6  # captions with the images found for them
SCORE = "image_to_text_r_at_1"


def draw_bleu(path: Path, results: list[Result]) -> None:
    """BLEU against temperature, a line a K and prompt; greedy cells as level lines."""
    lines, level = defaultdict(list), []
    for one in results:
        asked, numbers = one.run.params, one.metrics
        point = (asked.get("temperature"), numbers["bleu"], numbers["bleu_low"], numbers["bleu_high"])
        if asked["type"] == "top_k":
            lines[asked["k"], asked["prompt"]].append(point)
        elif asked["type"] == "greedy":
            level.append((asked["prompt"], numbers["bleu"]))
    prompts = sorted({prompt for _, prompt in lines}, key=lambda one: -sum(prompt == one for _, prompt in lines))
    colors = {k: plt.get_cmap("viridis")(place) for k, place in _places(sorted({k for k, _ in lines}))}
    with figure(path, figsize=(6.8, 4)) as (_, axes):
        for number, ((k, prompt), points) in enumerate(sorted(lines.items())):
            temperature, score, low, high = np.array(sorted(points)).T
            shift = 1 + 0.035 * (number - len(lines) / 2)  # intervals at one temperature stand side by side
            style = {"marker": "os^Dv"[prompts.index(prompt) % 5], "linestyle": "-", "markersize": 5}
            label = f"K = {k}" if prompt == prompts[0] else f'K = {k}, "{prompt}"'
            axes.errorbar(
                temperature * shift,
                score,
                [score - low, high - score],
                label=label,
                color=colors[k],
                capsize=2,
                **style,
            )
        for (prompt, score), style in zip(level, ("--", ":", "-.", "-"), strict=False):
            axes.axhline(score, color="0.3", linestyle=style, linewidth=1.2, label=f'greedy, "{prompt}"')
        axes.set_xscale("log")
        seen = sorted({temperature for points in lines.values() for temperature, *_ in points})
        axes.xaxis.set_major_locator(FixedLocator(seen))
        axes.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.set_xlabel("temperature (log scale)")
        axes.set_ylabel("BLEU-4 (%), with 95 % intervals")
        axes.set_ylim(bottom=0)
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
        settings = {"title": f'prompt "{prompts[0]}",\nif none is named', "title_fontsize": 8} if prompts else {}
        axes.legend(
            fontsize=8, frameon=False, loc="center left", bbox_to_anchor=(1.0, 0.5), alignment="left", **settings
        )


def _places(values: list) -> list[tuple]:
    return [(value, index / max(len(values) - 1, 1) * 0.9) for index, value in enumerate(values)]


def draw_captions(path: Path, rows: tuple[Row, ...], columns: dict[str, dict[str, tuple[str, str]]]) -> None:
    """A row an image: the image, the reference, its caption in every column (caption and reference by image id)."""
    shown = evenly_spaced(rows, CAPTIONED)
    titles = ["", "Reference", *columns]
    some = next(iter(columns.values()))
    widths = [1, *[1.75] * (len(titles) - 1)]
    size = (1.3 * sum(widths), 1.35 * len(shown) + 0.4)
    with figure(path, len(shown), len(titles), figsize=size, squeeze=False, width_ratios=widths) as (_, axes):
        for line, row in zip(axes, shown, strict=True):
            _picture(line[0], row)
            texts = [some[row.image_id][1], *(captions[row.image_id][0] for captions in columns.values())]
            for axis, text in zip(line[1:], texts, strict=True):
                axis.axis("off")
                wrapped = "\n".join(textwrap.wrap(text, 28, max_lines=6, placeholder=" …"))
                axis.text(0, 0.5, wrapped, fontsize=8.5, va="center", transform=axis.transAxes, parse_math=False)
        for axis, title in zip(axes[0][1:], titles[1:], strict=True):
            axis.set_title(
                title.replace(", ", "\n", 1).replace(', "', '\n"'), fontsize=8.5, fontweight="bold", loc="left"
            )


def draw_recall(path: Path, results: list[tuple[str, Result]]) -> None:
    """R@1 per epoch, a line a trained row; the provided projections as a level line."""
    ranked = sorted(results, key=lambda item: -item[1].metrics[SCORE])
    with figure(path, figsize=(8, 4.2)) as (_, axes):
        for number, (label, one) in enumerate(ranked):
            last = one.metrics[SCORE]
            if not one.run.history:
                axes.axhline(last, color="0.3", linestyle="--", linewidth=1.2, label=f"{label}: {last:.2f}")
                continue
            epochs = [row["epoch"] for row in one.run.history]
            style = {"marker": "osD^v"[number % 5], "linestyle": ("-", "--")[one.run.task == "retrieval"]}
            color = plt.get_cmap("turbo")((number + 0.5) / len(ranked))
            recall = [row[SCORE] for row in one.run.history]
            axes.plot(epochs, recall, label=f"{label}: {last:.2f}", color=color, markersize=3.5, linewidth=1.3, **style)
        axes.set_xlabel("epoch")
        axes.set_ylabel("R@1, image to text (%)")
        axes.set_ylim(bottom=0)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(fontsize=8, frameon=False, loc="center left", bbox_to_anchor=(1.0, 0.5))


def draw_found(path: Path, label: str, rows: tuple[Row, ...], found: list[dict]) -> None:
    """A row a caption: its words and rank, then the images nearest to it, the right one framed."""
    by_id = {row.image_id: row for row in rows}
    answers = {one["image_id"]: one for one in found}
    shown = [answers[row.image_id] for row in evenly_spaced(rows, ASKED)]
    columns = len(shown[0]["nearest"])
    widths = [2.2, *[1] * columns]
    size = (1.2 * sum(widths), 1.32 * len(shown) + 0.5)
    with figure(path, len(shown), columns + 1, figsize=size, squeeze=False, width_ratios=widths) as (drawn, axes):
        for line, answer in zip(axes, shown, strict=True):
            rank = answer["text_to_image_rank"]
            place = "found first" if rank == 1 else f"right image: rank {rank}"
            words = "\n".join(textwrap.wrap(answer["caption"], 28, max_lines=5, placeholder=" …"))
            line[0].axis("off")
            line[0].text(
                0, 0.5, f"{words}\n({place})", fontsize=8.5, va="center", transform=line[0].transAxes, parse_math=False
            )
            for axis, image_id in zip(line[1:], answer["nearest"], strict=True):
                _picture(axis, by_id[image_id])
                if image_id == answer["image_id"]:
                    for spine in axis.spines.values():
                        spine.set(visible=True, color="tab:green", linewidth=4)
        for place, axis in enumerate(axes[0][1:], 1):
            axis.set_title(str(place), fontsize=9)
        drawn.suptitle(f"Nearest images by {label}; the right one framed in green", fontsize=10)


def _picture(axis, row: Row) -> None:
    axis.imshow(np.asarray(read_image(Path(row.image))), interpolation="nearest")
    axis.set(xticks=[], yticks=[])
    axis.spines[:].set_visible(False)
