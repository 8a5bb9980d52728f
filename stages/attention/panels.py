"""Plot attention over images, and position embeddings as a grid of grids."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.colors import Normalize
from matplotlib.ticker import MaxNLocator
from PIL import Image
from torch import Tensor

from stages.attention.maps import relative_to_uniform, upsample
from stages.core.figures import figure, label_text, wrap_text

COLOR_MAP = plt.get_cmap("jet")  # as in the original: red is high, blue is low
OPACITY = 0.5
MAX_COLUMNS = 7  # panels per line
TITLE_LINES = 3  # that each line of a figure's title is wrapped into, at most
TITLE_WIDTH = 90  # characters in a line of the title above position embeddings
SCALE_LABEL = "attention relative to uniform attention"


@dataclass(frozen=True)
class Panel:
    """A panel's title and the attention `(rows, columns)` to plot over the image; None for the image alone."""

    title: str
    attention: Tensor | None

    @property
    def scale_max(self) -> float:
        """The highest attention, as a multiple of uniform attention."""
        assert self.attention is not None
        return relative_to_uniform(self.attention.float()).max().item()


def overlay(pixels: np.ndarray, attention: Tensor, scale_max: float) -> np.ndarray:
    """Attention `(rows, columns)`, upsampled and colored from 0 to `scale_max`, over `pixels` `(H, W, 3)` uint8.

    Returns `(H, W, 3)` in 0..1.
    """
    height, width = pixels.shape[:2]
    heat = upsample(attention.float(), (height, width)).numpy()
    colors = COLOR_MAP(np.clip(heat / scale_max, 0, 1))[..., :3]
    gray = pixels.mean(2, keepdims=True) / 255  # the image's own colors could be mistaken for attention
    return OPACITY * colors + (1 - OPACITY) * gray


def plot_rows(path: Path, rows: list[tuple[Image.Image, str, list[Panel]]], title: str, shared_scale: bool) -> None:
    """Plot rows of (image, image title, panels) below each other; wide rows wrap into several lines.

    `shared_scale` gives all panels one scale and one color bar; otherwise each has its own.
    """
    lines = [
        (image, line)
        for image, image_title, panels in rows
        for line in _split_into_lines([Panel(image_title, None), *panels])
    ]
    overlays = [panel for _, line in lines for panel in line if panel.attention is not None]
    scale_max = max(panel.scale_max for panel in overlays)
    columns = max(len(line) for _, line in lines)
    aspects = [image.height / image.width for image, _ in lines]

    # Sizes in inches, found by trial: panels, room for their titles, then the figure's title.
    width = 1.6 * columns + 0.7 if shared_scale else 1.75 * columns
    wrapped_title = _wrap(title if shared_scale else f"{title}\n(colors: {SCALE_LABEL})", width)
    title_height = 0.2 + 0.16 * max(panel.title.count("\n") for panel in overlays)
    height = sum(1.5 * aspect + title_height for aspect in aspects) + 0.16 * (wrapped_title.count("\n") + 2)

    grid = {"squeeze": False, "height_ratios": aspects}
    with figure(path, len(lines), columns, figsize=(width, height), **grid) as (fig, axes):
        for axis in axes.flat:
            axis.axis("off")
        for line_axes, (image, line) in zip(axes, lines, strict=True):
            pixels = np.asarray(image)
            for axis, panel in zip(line_axes, line, strict=False):  # the last line may be shorter
                axis.set_title("\n".join(map(label_text, panel.title.split("\n"))), fontsize=8.5)
                if panel.attention is None:
                    axis.imshow(pixels, interpolation="nearest")
                    continue
                panel_max = scale_max if shared_scale else panel.scale_max
                attention = relative_to_uniform(panel.attention.float())
                axis.imshow(overlay(pixels, attention, panel_max), interpolation="nearest")
                if not shared_scale:
                    _add_color_bar(fig, [axis], panel_max)
        if shared_scale:
            _add_color_bar(fig, list(axes.flat), scale_max, SCALE_LABEL)
        fig.suptitle(wrapped_title, fontsize=10)


def _split_into_lines(panels: list[Panel]) -> list[list[Panel]]:
    """Panels in lines of about equal length, at most `MAX_COLUMNS` long."""
    lines = math.ceil(len(panels) / MAX_COLUMNS)
    columns = math.ceil(len(panels) / lines)
    return [panels[start : start + columns] for start in range(0, len(panels), columns)]


def _wrap(title: str, width: float) -> str:
    """Break a title into lines that fit into a figure of `width` inches: about 12 characters per inch."""
    return "\n".join(wrap_text(line, int(12 * width), lines=TITLE_LINES) for line in title.split("\n"))


def _add_color_bar(fig: plt.Figure, axes: Sequence[Axes], scale_max: float, label: str = "") -> None:
    """Add a color bar from 0 to `scale_max`: a large labeled one for all axes, or a small one for a single axis."""
    scale = plt.cm.ScalarMappable(Normalize(0, scale_max), COLOR_MAP)
    bar = fig.colorbar(scale, ax=axes, shrink=0.8, aspect=30 if label else 14, pad=0.01 if label else 0.02)
    bar.ax.tick_params(labelsize=7, length=2)
    bar.locator = MaxNLocator(6 if label else 3)
    bar.update_ticks()
    if label:
        bar.set_label(label, fontsize=8)


def plot_positions(path: Path, similarity: Tensor, title: str) -> None:
    """Plot similarities `(R, C, R, C)` as `R` x `C` small grids, each of one patch to all others, from -1 to +1."""
    rows, columns = similarity.shape[:2]
    # One row and one column of NaN, which stay white, separate the small grids.
    padded = torch.full((rows, columns, rows + 1, columns + 1), torch.nan)
    padded[:, :, :rows, :columns] = similarity
    # (R, C, R + 1, C + 1) -> (R, R + 1, C, C + 1) -> one sheet, without the last separators
    sheet = padded.permute(0, 2, 1, 3).reshape(rows * (rows + 1), columns * (columns + 1))[:-1, :-1]
    height, width = (6.2 * side / max(sheet.shape) for side in sheet.shape)
    with figure(path, figsize=(width + 1.5, max(height, 2) + 0.9), squeeze=False) as (fig, axes):
        axis = axes[0, 0]
        sheet_image = axis.imshow(sheet.numpy(), cmap="viridis", vmin=-1, vmax=1, interpolation="nearest")
        # Ticks at the centers of the small grids.
        axis.set_xticks((columns + 1) * np.arange(columns) + (columns - 1) / 2, np.arange(1, columns + 1))
        axis.set_yticks((rows + 1) * np.arange(rows) + (rows - 1) / 2, np.arange(1, rows + 1))
        axis.tick_params(length=0, labelsize=8)
        axis.spines[:].set_visible(False)
        axis.set_xlabel("patch column", fontsize=9)
        axis.set_ylabel("patch row", fontsize=9)
        fig.colorbar(sheet_image, ax=axis, shrink=0.8, aspect=30, label="cosine similarity")
        axis.set_title(wrap_text(title, TITLE_WIDTH, lines=TITLE_LINES), fontsize=10)
