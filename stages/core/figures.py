"""Figures: text that is drawn as it is, and atomic writing.

Names of classes and labels, prompts, captions and paths may hold anything. They reach a figure through `label_text`,
`short_text` or `wrap_text`.
"""

import textwrap
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.figure import Figure

from stages.core.atomic import atomic_write
from stages.core.messages import printable_line

# A dollar sign is a dollar sign: as a formula, `$x` may not even be drawable.
matplotlib.rcParams["text.parse_math"] = False

LABEL_LENGTH = 60  # characters that leave room for a plot beside its legend


def short_text(text: str, length: int = LABEL_LENGTH) -> str:
    """`text` in one line of at most `length` characters."""
    text = printable_line(text)
    return text if len(text) <= length else f"{text[: length - 1]}…"


def label_text(text: str, length: int = LABEL_LENGTH) -> str:
    """`text` as `short_text` gives it, for the start of a title, a legend's entry or a tick."""
    text = short_text(text, length)
    # matplotlib leaves entries that start with an underscore out of a legend.
    return f" {text}" if text.startswith("_") else text


def wrap_text(text: str, width: int, lines: int) -> str:
    """`text` in at most `lines` lines of at most `width` characters."""
    return "\n".join(textwrap.wrap(printable_line(text), width, max_lines=lines, placeholder=" …"))


@contextmanager
def figure(
    path: Path, nrows: int = 1, ncols: int = 1, *, figsize: tuple[float, float], **settings: Any
) -> Iterator[tuple[Figure, Any]]:
    """Yield a figure of `figsize` inches and the axes of `Figure.subplots(nrows, ncols, **settings)`.

    At the end, the figure is written to `path` (PNG).
    """
    # Not from pyplot, whose backend may need a display, or is that of a notebook, which would show the figure.
    fig = Figure(figsize=figsize, layout="constrained")
    yield fig, fig.subplots(nrows, ncols, **settings)
    with atomic_write(path) as temporary, warnings.catch_warnings():
        # A character that the font lacks is drawn as a box. Fonts that have it are not on every machine.
        warnings.filterwarnings("ignore", "Glyph .* missing from font")
        # No `Software` entry: it holds matplotlib's version, and the same figure must give the same bytes.
        fig.savefig(temporary, dpi=130, format="png", metadata={"Software": None})
