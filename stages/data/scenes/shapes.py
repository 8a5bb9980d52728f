"""Ten drawn shapes as signed distance functions: negative inside, positive outside, unit radius.

The distances follow the usual closed forms (I. Quilez, "2D distance functions"). Each function takes coordinates `x`
(right) and `y` (down), arrays of the same shape, and returns an array of that shape.
"""

from collections.abc import Callable

import numpy as np

Distance = Callable[[np.ndarray, np.ndarray], np.ndarray]


def circle(x, y):
    return np.hypot(x, y) - 0.9


def square(x, y):
    return _box(x, y, 0.76, 0.76) - 0.04


def ring(x, y):
    return np.abs(np.hypot(x, y) - 0.68) - 0.24


def cross(x, y):
    return np.minimum(_box(x, y, 0.92, 0.29), _box(x, y, 0.29, 0.92))


def crescent(x, y):
    return np.maximum(np.hypot(x, y) - 0.95, 0.72 - np.hypot(x - 0.48, y))


def heart(x, y):
    """The union of two discs and a square turned by 45 degrees below them."""
    lobes = np.hypot(np.abs(x) - 0.42, y + 0.3) - 0.5
    u = (x + y) / np.sqrt(2)
    v = (y - x) / np.sqrt(2)
    return np.minimum(lobes, _box(u - 0.04, v - 0.04, 0.555, 0.555))


def polygon(corners: np.ndarray) -> Distance:
    """Return the exact signed distance function of a closed polygon with `corners` of shape `(n, 2)`."""

    def distance(x, y):
        nearest = np.full(x.shape, np.inf, np.float32)  # squared distance
        inside = np.zeros(x.shape, bool)
        for (ax, ay), (bx, by) in zip(corners, np.roll(corners, -1, axis=0), strict=True):
            ex = bx - ax  # the edge
            ey = by - ay
            px = x - ax  # the points, from the edge's start
            py = y - ay
            along = np.clip((px * ex + py * ey) / (ex * ex + ey * ey), 0, 1)  # of the edge's closest point
            nearest = np.minimum(nearest, (px - ex * along) ** 2 + (py - ey * along) ** 2)
            # Even-odd rule: a point is inside if a ray to the right crosses an odd number of edges. No such ray
            # crosses a horizontal edge.
            crosses = (ay > y) != (by > y)
            if ey:
                inside ^= crosses & (px < ex * py / ey)
        return np.where(inside, -1, 1) * np.sqrt(nearest)

    return distance


def _box(x, y, half_width, half_height):
    dx = np.abs(x) - half_width
    dy = np.abs(y) - half_height
    return np.hypot(np.maximum(dx, 0), np.maximum(dy, 0)) + np.minimum(np.maximum(dx, dy), 0)


def _corners(count: int, *radii: float) -> np.ndarray:
    """Return `(count, 2)` corners on circles of alternating radii, the first at the top."""
    angles = 2 * np.pi * np.arange(count) / count - np.pi / 2
    return np.stack([np.cos(angles), np.sin(angles)], axis=1) * np.resize(radii, count)[:, None]


_ARROW = np.array([(0.0, -1.0), (0.78, -0.1), (0.3, -0.1), (0.3, 0.92), (-0.3, 0.92), (-0.3, -0.1), (-0.78, -0.1)])

# Part of `scene.CLASSES`: the order determines class indices.
SHAPES: dict[str, Distance] = {
    "circle": circle,
    "square": square,
    "triangle": polygon(_corners(3, 1.05) + np.array([0, 0.12])),
    "star": polygon(_corners(10, 1.0, 0.44)),
    "ring": ring,
    "cross": cross,
    "heart": heart,
    "crescent": crescent,
    "arrow": polygon(_ARROW),
    "hexagon": polygon(_corners(6, 0.95)),
}
