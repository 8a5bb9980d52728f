"""Curves of a segmentation run, epoch by epoch."""

from pathlib import Path

from matplotlib.ticker import MaxNLocator

from stages.core.figures import figure
from stages.core.runs import Run
from stages.data.voc import BACKGROUND
from stages.report.colors import class_colors


def draw_miou(path: Path, runs: dict[str, Run]) -> None:
    """Validation mIoU per epoch, a line a run; `runs` maps labels to runs."""
    with figure(path, figsize=(6, 3.6)) as (_, axes):
        for label, run in runs.items():
            miou = [row["miou"] for row in run.history]
            axes.plot(_epochs(run), miou, marker="o", markersize=3.5, label=f"{label}: {miou[-1]:.2f}")
        _dress(axes, "validation mIoU (%)")
        axes.legend(fontsize=9, frameon=False)


def draw_class_iou(path: Path, label: str, run: Run) -> None:
    """Validation IoU of every class per epoch; the legend is sorted by where each class ends."""
    names = sorted(run.history[-1]["iou"], key=lambda name: -(run.history[-1]["iou"][name] or 0))
    colors = class_colors(tuple(run.history[0]["iou"]))
    with figure(path, figsize=(8, 4.4)) as (_, axes):
        for name in names:
            values = [row["iou"][name] for row in run.history]
            ends = "absent" if values[-1] is None else f"{values[-1]:.1f}"
            style = "--" if name == BACKGROUND else "-"
            line = [float("nan") if value is None else value for value in values]
            axes.plot(_epochs(run), line, style, color=colors[name], linewidth=1.4, label=f"{name}  {ends}")
        _dress(axes, "validation IoU (%)")
        axes.set_title(f"{label}: IoU of every class", fontsize=11)
        columns = 1 if len(names) <= 24 else 2
        axes.legend(fontsize=7.5, frameon=False, loc="center left", bbox_to_anchor=(1.0, 0.5), ncols=columns)


def _epochs(run: Run) -> list[int]:
    return [row["epoch"] for row in run.history]


def _dress(axes, y_label: str) -> None:
    axes.set_xlabel("epoch")
    axes.set_ylabel(y_label)
    axes.set_ylim(bottom=0)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
