"""The colours, textures and grounds of the drawn world.

Colours are RGB in [0, 1]. Letters: n images.
"""

from collections.abc import Callable

import numpy as np

Array = np.ndarray

COLOURS: dict[str, tuple[float, float, float]] = {
    "red": (0.85, 0.11, 0.12),
    "orange": (0.97, 0.50, 0.06),
    "yellow": (0.96, 0.88, 0.14),
    "green": (0.13, 0.62, 0.20),
    "teal": (0.08, 0.68, 0.68),
    "blue": (0.12, 0.25, 0.85),
    "purple": (0.52, 0.14, 0.70),
    "pink": (0.97, 0.52, 0.74),
    "brown": (0.45, 0.26, 0.10),
    "black": (0.06, 0.06, 0.07),
    "grey": (0.52, 0.52, 0.53),
    "white": (0.96, 0.96, 0.95),
}


def _wave(phase: Array) -> Array:
    """A square-ish wave of period 1 in [0, 1], soft enough not to alias."""
    return np.clip(0.5 + 1.6 * np.sin(2 * np.pi * phase), 0, 1)


def _noise(rng: np.random.Generator, n: int, side: int, cells: int) -> Array:
    """Smooth value noise in [0, 1], (n, side, side): a random grid, interpolated."""
    knots = rng.random((n, cells + 1, cells + 1), dtype=np.float32)
    at = np.linspace(0, cells, side, dtype=np.float32)
    weight = np.maximum(0, 1 - np.abs(at[:, None] - np.arange(cells + 1, dtype=np.float32)))
    return weight @ knots @ weight.T


def uniform(rng: np.random.Generator, n: int, low: float, high: float) -> Array:
    """(n, 1, 1) uniform numbers."""
    return (low + (high - low) * rng.random((n, 1, 1), dtype=np.float32)).astype(np.float32)


def _grain(u: Array, v: Array, rng: np.random.Generator) -> Array:
    n, side = u.shape[0], u.shape[-1]
    return np.clip(7 * (_noise(rng, n, side, side // 4) - 0.62), 0, 1)


def _dots(u: Array, v: Array, rng: np.random.Generator) -> Array:
    du, dv = u - np.floor(u) - 0.5, v - np.floor(v) - 0.5
    return np.clip((0.33 - np.hypot(du, dv)) * 7 + 0.5, 0, 1)


# u, v: the object's coordinates in periods of the texture. 1 means the second colour.
TEXTURES: dict[str, Callable[[Array, Array, np.random.Generator], Array]] = {
    "plain": lambda u, v, rng: np.zeros_like(u),
    "striped": lambda u, v, rng: _wave(u),
    "dotted": _dots,
    "checkered": lambda u, v, rng: np.clip(0.5 + 4 * np.sin(np.pi * u) * np.sin(np.pi * v), 0, 1),
    "wavy": lambda u, v, rng: _wave(u + 0.4 * np.sin(0.9 * np.pi * v)),
    "plaid": lambda u, v, rng: 0.5 * (_wave(0.8 * u) + _wave(0.8 * v)),
    "ringed": lambda u, v, rng: _wave(np.hypot(u, v)),
    "speckled": _grain,
}


def _brick(x: Array, y: Array, rng: np.random.Generator) -> Array:
    row = y * 3.5
    shift = 0.5 * (np.floor(row) % 2)
    col = x * 2 + shift
    edge = np.minimum((col - np.floor(col)) * 0.55, row - np.floor(row))
    return np.clip((0.14 - edge) * 14, 0, 1)


def _tiles(x: Array, y: Array, rng: np.random.Generator) -> Array:
    u, v = x * 2, y * 2
    edge = np.minimum(u - np.floor(u), v - np.floor(v))
    return np.clip((0.12 - edge) * 14, 0, 1)


def _stars(x: Array, y: Array, rng: np.random.Generator) -> Array:
    n, side = x.shape[0], x.shape[-1]
    return np.clip(9 * (_noise(rng, n, side, side // 3) - 0.86), 0, 1)


# name: first colour, second colour, mixture
GROUNDS: dict[str, tuple[tuple[float, float, float], tuple[float, float, float], Callable]] = {
    "grass": ((0.30, 0.55, 0.18), (0.14, 0.36, 0.10), lambda x, y, r: _noise(r, *_nb(x), 22)),
    "sand": ((0.90, 0.79, 0.56), (0.74, 0.61, 0.38), lambda x, y, r: _noise(r, *_nb(x), 26)),
    "water": (
        (0.22, 0.48, 0.70),
        (0.55, 0.76, 0.88),
        lambda x, y, r: _wave(y * 2.6 + 0.15 * np.sin(5 * x)) * 0.8,
    ),
    "brick": ((0.62, 0.27, 0.20), (0.80, 0.75, 0.70), _brick),
    "wood": (
        (0.63, 0.43, 0.24),
        (0.43, 0.27, 0.13),
        lambda x, y, r: np.clip(0.5 + 0.5 * np.sin(16 * x + 5 * _noise(r, *_nb(x), 3)), 0, 1),
    ),
    "snow": ((0.97, 0.98, 1.00), (0.82, 0.87, 0.94), lambda x, y, r: _noise(r, *_nb(x), 5)),
    "night": ((0.05, 0.06, 0.20), (0.95, 0.95, 0.80), _stars),
    "tiles": ((0.78, 0.83, 0.84), (0.40, 0.44, 0.47), _tiles),
}


def _nb(x: Array) -> tuple[int, int]:
    return x.shape[0], x.shape[-1]
