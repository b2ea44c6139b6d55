"""The shapes of the drawn world, as signed distances: negative inside.

Coordinates run over [-1, 1] from left to right and from top to bottom.
"""

import functools
from collections.abc import Callable

import numpy as np

Array = np.ndarray

SWATCH = "fabric"  # fills the whole picture: no outline, no ground


def _circle(x: Array, y: Array, cx: float = 0.0, cy: float = 0.0, r: float = 1.0) -> Array:
    return np.hypot(x - cx, y - cy) - r


def _box(x: Array, y: Array, w: float, h: float, cx: float = 0.0, cy: float = 0.0) -> Array:
    dx, dy = np.abs(x - cx) - w, np.abs(y - cy) - h
    return np.hypot(np.maximum(dx, 0), np.maximum(dy, 0)) + np.minimum(np.maximum(dx, dy), 0)


def _turn(x: Array, y: Array, angle: float) -> tuple[Array, Array]:
    c, s = np.cos(angle), np.sin(angle)
    return c * x + s * y, c * y - s * x


def _polygon(x: Array, y: Array, corners: list[tuple[float, float]]) -> Array:
    """Distance to the nearest edge, negative inside (even-odd rule)."""
    nearest = np.full(x.shape, np.inf, x.dtype)
    inside = np.zeros(x.shape, bool)
    for (ax, ay), (bx, by) in zip(corners, corners[1:] + corners[:1], strict=True):
        ex, ey = bx - ax, by - ay
        along = ((x - ax) * ex + (y - ay) * ey) / max(ex * ex + ey * ey, 1e-12)
        along = np.clip(along, 0, 1)
        nearest = np.minimum(nearest, np.hypot(x - ax - along * ex, y - ay - along * ey))
        crosses = (ay > y) != (by > y)
        inside ^= crosses & (x < ex * (y - ay) / (ey if ey else 1e-12) + ax)
    return np.where(inside, -nearest, nearest)


def _star(x: Array, y: Array) -> Array:
    angles = [np.pi * k / 5 - np.pi / 2 for k in range(10)]
    radii = [1.05, 0.45] * 5
    corners = [
        (r * float(np.cos(a)), r * float(np.sin(a))) for r, a in zip(radii, angles, strict=True)
    ]
    return _polygon(x, y, corners)


def _heart(x: Array, y: Array) -> Array:
    t = np.linspace(0, 2 * np.pi, 48, endpoint=False)
    hx = 16 * np.sin(t) ** 3
    hy = 13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t)
    return _polygon(
        x, y, [(float(a) / 16.5, -float(b + 2.5) / 16.5) for a, b in zip(hx, hy, strict=True)]
    )


def _drop(x: Array, y: Array) -> Array:
    t = np.linspace(0, 2 * np.pi, 40, endpoint=False)
    dx, dy = np.sin(t) * np.sin(t / 2) ** 1.6, -np.cos(t)
    return _polygon(x, y, [(0.78 * float(a), float(b)) for a, b in zip(dx, dy, strict=True)])


def _union(*parts: Array) -> Array:
    return functools.reduce(np.minimum, parts)


def _cog(x: Array, y: Array) -> Array:
    teeth = [_box(*_turn(x, y, np.pi * k / 4), 0.2, 1.0) for k in range(4)]
    return np.maximum(_union(_circle(x, y, r=0.72), *teeth), -_circle(x, y, r=0.3))


def _flower(x: Array, y: Array) -> Array:
    angles = [2 * np.pi * k / 5 - np.pi / 2 for k in range(5)]
    petals = [_circle(x, y, 0.6 * np.cos(a), 0.6 * np.sin(a), 0.38) for a in angles]
    return _union(_circle(x, y, r=0.4), *petals)


def _tree(x: Array, y: Array) -> Array:
    top = _polygon(x, y, [(0.0, -1.0), (0.55, -0.15), (-0.55, -0.15)])
    low = _polygon(x, y, [(0.0, -0.5), (0.8, 0.55), (-0.8, 0.55)])
    return _union(top, low, _box(x, y, 0.16, 0.3, cy=0.75))


def _cloud(x: Array, y: Array) -> Array:
    puffs = [(-0.55, 0.15, 0.4), (-0.1, -0.2, 0.5), (0.5, 0.1, 0.45)]
    return _union(_box(x, y, 0.6, 0.25, cy=0.3), *[_circle(x, y, *puff) for puff in puffs])


SHAPES: dict[str, Callable[[Array, Array], Array]] = {
    "circle": lambda x, y: _circle(x, y, r=0.95),
    "square": lambda x, y: _box(x, y, 0.8, 0.8),
    "triangle": lambda x, y: _polygon(x, y, [(0.0, -0.95), (0.95, 0.75), (-0.95, 0.75)]),
    "star": _star,
    "cross": lambda x, y: _union(_box(x, y, 0.95, 0.3), _box(x, y, 0.3, 0.95)),
    "heart": _heart,
    "moon": lambda x, y: np.maximum(_circle(x, y), -_circle(x, y, 0.5, -0.15, 0.8)),
    "ring": lambda x, y: np.abs(_circle(x, y, r=0.72)) - 0.25,
    "arrow": lambda x, y: _polygon(
        x,
        y,
        [(-1, -0.25), (0.1, -0.25), (0.1, -0.75), (1, 0), (0.1, 0.75), (0.1, 0.25), (-1, 0.25)],
    ),
    "drop": _drop,
    "leaf": lambda x, y: np.maximum(
        _circle(x, y, 0.55, 0.0, 1.05), _circle(x, y, -0.55, 0.0, 1.05)
    ),
    "flower": _flower,
    "cloud": _cloud,
    "cog": _cog,
    "house": lambda x, y: _polygon(
        x,
        y,
        [(0, -1), (1, -0.1), (0.7, -0.1), (0.7, 0.9), (-0.7, 0.9), (-0.7, -0.1), (-1, -0.1)],
    ),
    "tree": _tree,
}


TABLE_SIDE, TABLE_REACH = 160, 2.0  # the tables cover [-2, 2]²; an object's own reach is about 1


@functools.cache
def outlines() -> Array:
    """Signed distances of every shape in its own units, (shapes, side, side)."""
    line = np.linspace(-TABLE_REACH, TABLE_REACH, TABLE_SIDE, dtype=np.float32)
    x, y = np.meshgrid(line, line)
    return np.stack([draw(x, y).astype(np.float32) for draw in SHAPES.values()])
