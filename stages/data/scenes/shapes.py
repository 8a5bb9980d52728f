"""Ten drawn shapes as signed distance functions: negative inside, positive outside, unit radius.

The distances follow the usual closed forms (I. Quilez, "2D distance functions"); each takes local coordinates
`x` (right) and `y` (down), arrays of one shape, and returns an array of that shape.
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
    """Two lobes on a point: the union of two discs and the square turned between them."""
    lobes = np.hypot(np.abs(x) - 0.42, y + 0.3) - 0.5
    u, v = (x + y) / np.sqrt(2), (y - x) / np.sqrt(2)
    return np.minimum(lobes, _box(u - 0.04, v - 0.04, 0.555, 0.555))


def polygon(corners: np.ndarray) -> Distance:
    """The exact distance to a closed polygon with `corners` of shape `(n, 2)`."""

    def distance(x, y):
        nearest, inside = np.full(x.shape, np.inf, np.float32), np.zeros(x.shape, bool)
        for (ax, ay), (bx, by) in zip(corners, np.roll(corners, -1, axis=0), strict=True):
            ex, ey, px, py = bx - ax, by - ay, x - ax, y - ay
            along = np.clip((px * ex + py * ey) / (ex * ex + ey * ey), 0, 1)
            nearest = np.minimum(nearest, (px - ex * along) ** 2 + (py - ey * along) ** 2)
            crosses = (ay > y) != (by > y)
            if ey:  # a level edge is crossed by no level ray
                inside ^= crosses & (px < ex * py / ey)
        return np.where(inside, -1, 1) * np.sqrt(nearest)

    return distance


def _box(x, y, half_width, half_height):
    dx, dy = np.abs(x) - half_width, np.abs(y) - half_height
    return np.hypot(np.maximum(dx, 0), np.maximum(dy, 0)) + np.minimum(np.maximum(dx, dy), 0)


def _around(count: int, *radii: float) -> np.ndarray:
    """`count` corners on circles whose radii alternate, the first straight up."""
    angles = 2 * np.pi * np.arange(count) / count - np.pi / 2
    return np.stack([np.cos(angles), np.sin(angles)], axis=1) * np.resize(radii, count)[:, None]


_ARROW = np.array([(0.0, -1.0), (0.78, -0.1), (0.3, -0.1), (0.3, 0.92), (-0.3, 0.92), (-0.3, -0.1), (-0.78, -0.1)])

SHAPES: dict[str, Distance] = {
    "circle": circle,
    "square": square,
    "triangle": polygon(_around(3, 1.05) + np.array([0, 0.12])),
    "star": polygon(_around(10, 1.0, 0.44)),
    "ring": ring,
    "cross": cross,
    "heart": heart,
    "crescent": crescent,
    "arrow": polygon(_ARROW),
    "hexagon": polygon(_around(6, 0.95)),
}
