"""Figures: the matplotlib backend, and atomic writing."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")  # before pyplot is imported: a backend that needs no display
import matplotlib.pyplot as plt

from stages.core.atomic import atomic_write


@contextmanager
def figure(path: Path, *args, **settings) -> Iterator[tuple[plt.Figure, Any]]:
    """Yield figure and axes of `plt.subplots(*args, **settings)`; write the figure to `path` (PNG) at the end."""
    fig, axes = plt.subplots(*args, layout="constrained", **settings)
    try:
        yield fig, axes
        with atomic_write(path) as temporary:
            # No `Software` entry: it holds matplotlib's version, and the same figure must give the same bytes.
            fig.savefig(temporary, dpi=130, format="png", metadata={"Software": None})
    finally:
        plt.close(fig)
