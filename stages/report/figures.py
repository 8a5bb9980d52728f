"""What all figures share: the backend, the colours of classes, and writing without half files."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.colors import hsv_to_rgb

from stages.writing import replacing

BACKGROUND = "background"
GOLDEN = 0.618034  # of a turn between the hues of neighbours: any number of hues stay apart


@contextmanager
def figure(path: Path, *args, **settings) -> Iterator[tuple[plt.Figure, np.ndarray]]:
    """`plt.subplots` whose figure is written to `path` (PNG) at the end; the same figure gives the same bytes."""
    drawn, axes = plt.subplots(*args, layout="constrained", **settings)
    try:
        yield drawn, axes
        with replacing(path) as beside:
            drawn.savefig(beside, dpi=130, format="png", metadata={"Software": None})
    finally:
        plt.close(drawn)


def class_colours(classes: tuple[str, ...]) -> dict[str, tuple[float, float, float]]:
    """A colour for every class name: `background` grey, the others saturated and far from their neighbours."""
    others = [name for name in classes if name != BACKGROUND]
    colours = {BACKGROUND: (0.45, 0.45, 0.45)}
    for index, name in enumerate(others):
        hue, light = index * GOLDEN % 1, (1.0, 0.62)[index % 2]
        colours[name] = tuple(float(part) for part in hsv_to_rgb((hue, 0.85, light)))
    return colours
