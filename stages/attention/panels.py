"""Attention laid over images, and position embeddings as a grid of grids."""

import math
import textwrap
from dataclasses import dataclass
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.colors import Normalize
from matplotlib.ticker import MaxNLocator
from PIL import Image
from torch import Tensor

from stages.attention.maps import relative, upsampled
from stages.core.figures import figure

COLORS = plt.get_cmap("jet")  # the reports': red is large, blue is small
OPACITY = 0.5
ACROSS = 7  # panels in a line
UNIT = "attention, in multiples of an even spread"


@dataclass(frozen=True)
class Panel:
    """One overlay: its title, and what every patch gets, `(rows, columns)`."""

    title: str
    attention: Tensor


def overlay(pixels: np.ndarray, attention: Tensor, top: float) -> np.ndarray:
    """`attention` `(rows, columns)`, stretched and colored from 0 to `top`, over `pixels` `(H, W, 3)` uint8.

    Returns `(H, W, 3)` in 0..1.
    """
    heat = upsampled(attention.float(), pixels.shape[:2]).numpy()
    painted = COLORS(np.clip(heat / top, 0, 1))[..., :3]
    gray = pixels.mean(2, keepdims=True) / 255  # colors of the image would pass for those of attention
    return OPACITY * painted + (1 - OPACITY) * gray


def draw_panels(path: Path, image: Image.Image, first: str, panels: list[Panel], title: str, shared: bool) -> None:
    """The image, titled `first`, then its panels, at most `ACROSS` in a line.

    `shared` gives all panels one scale and one color bar; else each has its own.
    """
    draw_rows(path, [(image, first, panels)], title, shared)


def draw_rows(path: Path, rows: list[tuple[Image.Image, str, list[Panel]]], title: str, shared: bool) -> None:
    """The same for several images, lines of panels one below the other."""
    lines = [(image, line) for image, first, panels in rows for line in _lines(first, panels)]
    maps = [panel for _, line in lines for panel in line if panel.attention is not None]
    top = max(_top(panel) for panel in maps)
    across, aspects = max(len(line) for _, line in lines), [image.height / image.width for image, _ in lines]
    panel_width, bar_width = (1.6, 0.7) if shared else (1.75, 0)
    width = panel_width * across + bar_width
    told = _wrapped(title if shared else f"{title}\n(colors: {UNIT})", width)
    titles = 0.2 + 0.16 * max(panel.title.count("\n") for panel in maps)
    height = sum(1.5 * aspect + titles for aspect in aspects) + 0.16 * (told.count("\n") + 2)
    size = (width, height)
    with figure(path, len(lines), across, figsize=size, squeeze=False, height_ratios=aspects) as (drawn, axes):
        for axis in axes.flat:
            axis.axis("off")
        for some, (image, line) in zip(axes, lines, strict=True):
            for axis, panel in zip(some, line, strict=False):
                own = _draw_panel(axis, np.asarray(image), panel, top if shared else None)
                if own and not shared:
                    _bar(drawn, axis, own)
        if shared:
            _bar(drawn, list(axes.flat), top, UNIT)
        drawn.suptitle(told, fontsize=10, parse_math=False)


def _draw_panel(axis, pixels: np.ndarray, panel: Panel, top: float | None) -> float | None:
    """One panel on its axis; returns the top of its scale, `top` or its own, None for the image alone."""
    axis.set_title(panel.title, fontsize=8.5, parse_math=False)
    if panel.attention is None:
        axis.imshow(pixels, interpolation="nearest")
        return None
    top = top or _top(panel)
    axis.imshow(overlay(pixels, relative(panel.attention.float()), top), interpolation="nearest")
    return top


def _wrapped(title: str, width: float) -> str:
    """A title whose lines fit into a figure of `width` inches."""
    return "\n".join(part for line in title.splitlines() for part in textwrap.wrap(line, int(12 * width)))


def _lines(first: str, panels: list[Panel]) -> list[list[Panel]]:
    """Panels in lines of about one length, the image itself before them."""
    every = [Panel(first, None), *panels]
    across = math.ceil(len(every) / math.ceil(len(every) / ACROSS))
    return [every[start : start + across] for start in range(0, len(every), across)]


def _top(panel: Panel) -> float:
    return relative(panel.attention.float()).max().item()


def _bar(drawn: plt.Figure, axes, top: float, label: str = "") -> None:
    scale = plt.cm.ScalarMappable(Normalize(0, top), COLORS)
    settings = {"shrink": 0.8, "aspect": 14, "pad": 0.02} if not label else {"shrink": 0.8, "aspect": 30, "pad": 0.01}
    bar = drawn.colorbar(scale, ax=axes, **settings)
    bar.ax.tick_params(labelsize=7, length=2)
    bar.locator = MaxNLocator(3 if not label else 6)
    bar.update_ticks()
    if label:
        bar.set_label(label, fontsize=8)


def draw_positions(path: Path, alike: Tensor, title: str) -> None:
    """Similarities `(R, C, R, C)` as `R` x `C` small grids: each patch's to all others, indigo -1, yellow +1."""
    rows, columns = alike.shape[:2]
    padded = torch.full((rows, columns, rows + 1, columns + 1), torch.nan)
    padded[:, :, :rows, :columns] = alike
    sheet = padded.permute(0, 2, 1, 3).reshape(rows * (rows + 1), columns * (columns + 1))[:-1, :-1]
    height, width = (6.2 * side / max(sheet.shape) for side in sheet.shape)
    with figure(path, figsize=(width + 1.5, max(height, 2) + 0.9)) as (drawn, axis):
        shown = axis.imshow(sheet.numpy(), cmap="viridis", vmin=-1, vmax=1, interpolation="nearest")
        axis.set_xticks((columns + 1) * np.arange(columns) + (columns - 1) / 2, np.arange(1, columns + 1))
        axis.set_yticks((rows + 1) * np.arange(rows) + (rows - 1) / 2, np.arange(1, rows + 1))
        axis.tick_params(length=0, labelsize=8)
        axis.spines[:].set_visible(False)
        axis.set_xlabel("patch column", fontsize=9)
        axis.set_ylabel("patch row", fontsize=9)
        drawn.colorbar(shown, ax=axis, shrink=0.8, aspect=30, label="cosine similarity")
        axis.set_title(title, fontsize=10, parse_math=False)
