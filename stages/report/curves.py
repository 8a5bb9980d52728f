"""Line plots: metrics per epoch, and BLEU against temperature.

Lines are means over the seeds; a band around each reaches from the lowest seed to the highest.
"""

from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.ticker import FixedLocator, MaxNLocator, NullFormatter, StrMethodFormatter

from stages.core.figures import figure, label_text, short_text
from stages.core.runs import Run
from stages.data.voc import BACKGROUND
from stages.report.results import Result
from stages.retrieval import RECALL
from stages.segmentation.class_colors import class_colors

OUTSIDE_RIGHT = {"fontsize": 8, "frameon": False, "loc": "center left", "bbox_to_anchor": (1.0, 0.5)}


def seed_curves(result: Result, key: str) -> pd.DataFrame:
    """A column of the history by epoch (rows) and seed (columns)."""
    return pd.DataFrame({run.key: {epoch["epoch"]: epoch[key] for epoch in run.history} for run in result.runs})


def plot_miou(path: Path, results: dict[str, Result]) -> None:
    """Validation mIoU per epoch, one line per head; `results` maps legend labels to heads."""
    with figure(path, figsize=(7.6, 3.6)) as (_, axes):
        for index, (label, result) in enumerate(results.items()):
            label = f"{label_text(label)}: {result.metrics['miou']:.2f}"
            _plot_mean(axes, result, "miou", label=label, color=f"C{index}", marker="o", markersize=3.5)
        _style(axes, "epoch", "validation mIoU (%)")
        axes.legend(**OUTSIDE_RIGHT)


def plot_class_iou(path: Path, label: str, run: Run) -> None:
    """Validation IoU of every class per epoch; the legend is sorted by the last epoch's IoU."""
    last = run.history[-1]["iou"]
    names = sorted(last, key=lambda name: -(last[name] or 0))
    colors = class_colors(tuple(last))
    with figure(path, figsize=(8, 4.4)) as (_, axes):
        for name in names:
            # A class in neither truth nor prediction has no IoU: NaN leaves a gap in its line.
            values = [float("nan") if iou[name] is None else iou[name] for iou in _history(run, "iou")]
            final = "absent" if last[name] is None else f"{last[name]:.1f}"
            style = "--" if name == BACKGROUND else "-"
            label_of_class = f"{label_text(name)}  {final}"
            axes.plot(_history(run, "epoch"), values, style, color=colors[name], linewidth=1.4, label=label_of_class)
        _style(axes, "epoch", "validation IoU (%)")
        axes.set_title(f"{label_text(label)}: IoU of every class", fontsize=11)
        axes.legend(**{**OUTSIDE_RIGHT, "fontsize": 7.5}, ncols=1 if len(names) <= 24 else 2)


def plot_recall(path: Path, results: dict[str, Result]) -> None:
    """R@1 per epoch, one line per trained row; the provided projections as a horizontal line."""
    ranked = sorted(results.items(), key=lambda item: -item[1].metrics[RECALL])
    with figure(path, figsize=(8, 4.2)) as (_, axes):
        for index, (label, result) in enumerate(ranked):
            label = f"{label_text(label)}: {result.metrics[RECALL]:.2f}"
            if not result.run.history:
                axes.axhline(result.metrics[RECALL], color="0.3", linestyle="--", linewidth=1.2, label=label)
                continue
            _plot_mean(
                axes,
                result,
                RECALL,
                label=label,
                color=plt.get_cmap("turbo")((index + 0.5) / len(ranked)),
                linestyle="--" if result.run.task == "retrieval" else "-",  # Table 4 is dashed, Table 5 solid
                marker="osD^v"[index % 5],
                markersize=3.5,
                linewidth=1.3,
            )
        _style(axes, "epoch", "R@1, image to text (%)")
        axes.legend(**OUTSIDE_RIGHT)


def plot_accuracy(path: Path, results: list[Result]) -> None:
    """Validation accuracy per epoch on the left, both losses on the right, one color per setting."""
    chance = 100 / len(results[0].run.details["confusion"])
    with figure(path, 1, 2, figsize=(10.4, 3.6)) as (fig, (left, right)):
        for index, result in enumerate(results):
            style = {"color": f"C{index}", "marker": "osD^v"[index % 5], "markersize": 4, "linewidth": 1.4}
            label = f"{label_text(result.name)}: {result.metrics['accuracy']:.1f}"
            _plot_mean(left, result, "accuracy", label=label, **style)
            _plot_mean(right, result, "train_loss", **style)
            _plot_mean(right, result, "val_loss", linestyle="--", **style)
        left.axhline(chance, color="0.4", linestyle=":", linewidth=1.2, label=f"chance: {chance:.1f}")
        _style(left, "epoch", "validation accuracy (%)")
        _style(right, "epoch", "cross entropy")
        left.set_ylim(0, 100)
        # Empty lines for the legend: the colors stand for the settings, the line styles for the splits.
        right.plot([], [], color="0.3", label="training")
        right.plot([], [], color="0.3", linestyle="--", label="validation")
        right.legend(fontsize=8, frameon=False)
        fig.legend(*left.get_legend_handles_labels(), loc="outside right center", fontsize=8, frameon=False)


def plot_bleu(path: Path, cells: list[tuple[Result, tuple[float, float]]]) -> None:
    """BLEU against temperature, one line per K and prompt; greedy cells as horizontal lines.

    `cells` are results with the interval of their BLEU, over images and seeds.
    """
    lines = defaultdict(list)
    for result, (low, high) in cells:
        params = result.run.params
        if params["type"] == "top_k":
            lines[params["k"], params["prompt"]].append((params["temperature"], result.metrics["bleu"], low, high))
    counts = Counter(prompt for _, prompt in lines)
    prompts = sorted(counts, key=lambda prompt: (-counts[prompt], prompt))  # the most frequent one goes into the title
    values = sorted({k for k, _ in lines})
    # The end of the color map is too pale on white.
    colors = {k: plt.get_cmap("viridis")(0.9 * index / max(len(values) - 1, 1)) for index, k in enumerate(values)}
    greedy = [result for result, _ in cells if result.run.params["type"] == "greedy"]
    with figure(path, figsize=(6.8, 4)) as (_, axes):
        for index, ((k, prompt), points) in enumerate(sorted(lines.items())):
            temperature, bleu, lows, highs = np.array(sorted(points)).T
            shift = 1 + 0.035 * (index - len(lines) / 2)  # intervals at one temperature stand side by side
            axes.errorbar(
                temperature * shift,
                bleu,
                np.maximum([bleu - lows, highs - bleu], 0),  # a bootstrap interval need not contain the mean
                label=f"K = {k}" if prompt == prompts[0] else f'K = {k}, "{short_text(prompt)}"',
                color=colors[k],
                marker="os^Dv"[prompts.index(prompt) % 5],
                linestyle="-",
                markersize=5,
                capsize=2,
            )
        for result, style in zip(greedy, ("--", ":", "-.", "-"), strict=False):
            label = f'greedy, "{short_text(result.run.params["prompt"])}"'
            axes.axhline(result.metrics["bleu"], color="0.3", linestyle=style, linewidth=1.2, label=label)
        _style(axes, "temperature (log scale)", "BLEU-4 (%), means with 95 % intervals")
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(FixedLocator(sorted({point[0] for points in lines.values() for point in points})))
        axes.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
        axes.xaxis.set_minor_formatter(NullFormatter())
        title = f'prompt "{short_text(prompts[0])}",\nunless stated otherwise' if prompts else None
        axes.legend(**OUTSIDE_RIGHT, alignment="left", title=title, title_fontsize=8)


def _plot_mean(axes: Any, result: Result, key: str, **style: Any) -> None:
    """The mean over the seeds per epoch, with a band from the lowest seed to the highest."""
    curves = seed_curves(result, key)
    (line,) = axes.plot(curves.index, curves.mean(axis="columns"), **style)
    if len(result.runs) > 1:
        low = curves.min(axis="columns")
        high = curves.max(axis="columns")
        axes.fill_between(curves.index, low, high, color=line.get_color(), alpha=0.12, linewidth=0)


def _history(run: Run, key: str) -> list[Any]:
    return [epoch[key] for epoch in run.history]


def _style(axes: Any, x_label: str, y_label: str) -> None:
    axes.set_xlabel(x_label)
    axes.set_ylabel(y_label)
    axes.set_ylim(bottom=0)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
