"""A color for every class."""

from matplotlib.colors import hsv_to_rgb

from stages.data.voc import BACKGROUND

GOLDEN = 0.618034  # of a turn between the hues of neighbors: any number of hues stay apart


def class_colors(classes: tuple[str, ...]) -> dict[str, tuple[float, float, float]]:
    """A color for every class name: `background` gray, the others saturated and far from their neighbors."""
    others = [name for name in classes if name != BACKGROUND]
    colors = {BACKGROUND: (0.45, 0.45, 0.45)}
    for index, name in enumerate(others):
        hue, light = index * GOLDEN % 1, (1.0, 0.62)[index % 2]
        colors[name] = tuple(float(part) for part in hsv_to_rgb((hue, 0.85, light)))
    return colors
