"""Figures as files: the backend, and writing without half of one."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from stages.core.atomic import atomic_write


@contextmanager
def figure(path: Path, *args, **settings) -> Iterator[tuple[plt.Figure, Any]]:
    """`plt.subplots` whose figure is written to `path` (PNG) at the end; the same figure gives the same bytes."""
    drawn, axes = plt.subplots(*args, layout="constrained", **settings)
    try:
        yield drawn, axes
        with atomic_write(path) as beside:
            drawn.savefig(beside, dpi=130, format="png", metadata={"Software": None})
    finally:
        plt.close(drawn)
