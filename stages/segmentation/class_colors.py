"""One color per class."""

from matplotlib.colors import hsv_to_rgb

from stages.data.voc import BACKGROUND

# Golden ratio conjugate: hues that are this share of a turn apart stay distinct for any number of classes.
GOLDEN = 0.618034


def class_colors(classes: tuple[str, ...]) -> dict[str, tuple[float, float, float]]:
    """An RGB color in 0..1 for every class name, and gray for `background`, which may be missing in `classes`."""
    colors = {BACKGROUND: (0.45, 0.45, 0.45)}
    for index, name in enumerate(name for name in classes if name != BACKGROUND):
        hue = index * GOLDEN % 1
        brightness = 1.0 if index % 2 == 0 else 0.62
        red, green, blue = hsv_to_rgb((hue, 0.85, brightness))
        colors[name] = (float(red), float(green), float(blue))
    return colors
