"""A small drawn world: shapes with colours and textures on grounds, drawn in batches from a seed.

It's a fixture. Its classes are compositional ("striped red star"), so a contrastive model can be
pre-trained on captions of it in minutes, and its images are hard enough, once lit, cluttered and
compressed, that prompts have something to learn. `mini_world/data_sets.py` writes data sets of
it; `scripts/pretrain_tiny_clip.py` trains the tiny CLIP on it. See docs/mini_world.md.

Letters: N images, S pixels a side. Coordinates run over [-1, 1] from left to right and from top to
bottom. Colours are RGB in [0, 1]. Everything is float32 until the picture is rounded to uint8.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass

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
SWATCH = "fabric"  # fills the whole picture: no outline, no ground


# ---------------------------------------------------------------- outlines, as signed distances


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
_TABLE_SIDE, _TABLE_REACH = 160, 2.0  # the tables cover [-2, 2]²; an object's own reach is about 1


@functools.cache
def _outlines() -> Array:
    """Signed distances of every shape in its own units, (shapes, side, side)."""
    line = np.linspace(-_TABLE_REACH, _TABLE_REACH, _TABLE_SIDE, dtype=np.float32)
    x, y = np.meshgrid(line, line)
    return np.stack([draw(x, y).astype(np.float32) for draw in SHAPES.values()])


# ---------------------------------------------------------------- textures and grounds


def _wave(phase: Array) -> Array:
    """A square-ish wave of period 1 in [0, 1], soft enough not to alias."""
    return np.clip(0.5 + 1.6 * np.sin(2 * np.pi * phase), 0, 1)


def _noise(rng: np.random.Generator, n: int, side: int, cells: int) -> Array:
    """Smooth value noise in [0, 1], (n, side, side): a random grid, interpolated."""
    knots = rng.random((n, cells + 1, cells + 1), dtype=np.float32)
    at = np.linspace(0, cells, side, dtype=np.float32)
    weight = np.maximum(0, 1 - np.abs(at[:, None] - np.arange(cells + 1, dtype=np.float32)))
    return weight @ knots @ weight.T


def _uniform(rng: np.random.Generator, n: int, low: float, high: float) -> Array:
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


# ---------------------------------------------------------------- scenes


@dataclass(frozen=True)
class Look:
    """How pictures of a scene come out: the range of each effect. Pre-training and the data sets
    differ in this alone; the defaults are those of pre-training.

    radius: of the object, as a share of half the picture. shift: of its centre, to either side.
    turn: of the object, radians to either side. hue: how far colours wander, in RGB. light: the
    darkest corner's brightness. noise: standard deviation. blur: how far each picture may be
    blurred, 0 to 1. clutter: how many small things lie around. tint: RGB every picture is
    multiplied with. contrast: 1 leaves it. rim: width of a white edge around objects, as stickers
    have it, in object units. line: None fills the outlines; a number draws only
    their edge, of that width in object units, on paper.
    """

    radius: tuple[float, float] = (0.62, 0.8)
    shift: float = 0.06
    turn: float = 0.12
    hue: float = 0.06
    light: float = 0.85
    noise: float = 0.02
    blur: float = 0.0
    clutter: int = 0
    tint: tuple[float, float, float] = (1.0, 1.0, 1.0)
    contrast: tuple[float, float] = (0.9, 1.0)
    rim: float = 0.12
    line: float | None = None


# The styles of pre-training, named in its captions; the data sets have looks of their own.
STYLES: dict[str, Look] = {
    "clear": Look(),
    "dark": Look(tint=(0.45, 0.45, 0.5)),
    "bright": Look(contrast=(0.6, 0.7), tint=(1.5, 1.5, 1.45)),
    "blurry": Look(blur=1.0),
    "grainy": Look(noise=0.12),
}


@dataclass
class Scene:
    """N scenes by index: shape (len(SHAPES) means the swatch), colour, texture, ground; each (N,).

    The ground of a swatch isn't seen.
    """

    shape: Array
    colour: Array
    texture: Array
    ground: Array

    @property
    def size(self) -> int:
        return len(self.shape)

    def take(self, rows: Array) -> "Scene":
        """The scenes of these rows."""
        return Scene(self.shape[rows], self.colour[rows], self.texture[rows], self.ground[rows])


def random_scenes(
    rng: np.random.Generator, n: int, swatches: float = 0.12, plain: float = 0.2
) -> Scene:
    """Draw every attribute uniformly, then make a share of the scenes swatches, another plain."""
    shape = rng.integers(0, len(SHAPES), n)
    shape = np.where(rng.random(n) < swatches, len(SHAPES), shape)
    texture = rng.integers(0, len(TEXTURES), n)
    return Scene(
        shape=shape,
        colour=rng.integers(0, len(COLOURS), n),
        texture=np.where(rng.random(n) < plain, list(TEXTURES).index("plain"), texture),
        ground=rng.integers(0, len(GROUNDS), n),
    )


def draw(scene: Scene, side: int, look: Look, rng: np.random.Generator) -> Array:
    """Draw a batch of scenes. Returns uint8 (N, side, side, 3); a function of its arguments."""
    return draw_with_masks(scene, side, look, rng)[0]


def draw_with_masks(
    scene: Scene, side: int, look: Look, rng: np.random.Generator
) -> tuple[Array, Array]:
    """`draw`, and where the objects are: uint8 (N, side, side), 0 to 255."""
    n = scene.size
    line = ((np.arange(side, dtype=np.float32) + 0.5) * 2 / side) - 1
    x, y = np.broadcast_to(line, (n, side, side)), np.broadcast_to(line[:, None], (n, side, side))

    picture = _draw_grounds(scene, x, y, look, rng)
    for _ in range(look.clutter):
        _draw_clutter(picture, x, y, rng)
    mask = _draw_objects(picture, scene, x, y, look, rng)
    return _develop(picture, x, y, look, rng), np.rint(mask * 255).astype(np.uint8)


def _paint(picture: Array, paint: Array, alpha: Array) -> None:
    picture += alpha[..., None] * (paint - picture)


def _jitter(rng: np.random.Generator, colours: Array, spread: float) -> Array:
    """(N, 3) colours, each moved by up to `spread` per channel."""
    return np.clip(colours + spread * (2 * rng.random(colours.shape) - 1), 0, 1).astype(np.float32)


def _draw_grounds(scene: Scene, x: Array, y: Array, look: Look, rng: np.random.Generator) -> Array:
    picture = np.empty((*x.shape, 3), np.float32)
    if look.line is not None:  # a drawing: the ground is paper
        paper = _jitter(rng, np.full((scene.size, 3), 0.8), 0.05)
        picture[:] = paper[:, None, None]
        return picture
    for index, (first, second, mixture) in enumerate(GROUNDS.values()):
        rows = np.flatnonzero(scene.ground == index)
        if not len(rows):
            continue
        m = len(rows)
        zoom = _uniform(rng, m, 0.85, 1.2)
        mix = mixture(
            x[rows] * zoom + _uniform(rng, m, -1, 1), y[rows] * zoom + _uniform(rng, m, -1, 1), rng
        )
        a = _jitter(rng, np.tile(first, (m, 1)), look.hue)[:, None, None]
        b = _jitter(rng, np.tile(second, (m, 1)), look.hue)[:, None, None]
        picture[rows] = a + mix[..., None].astype(np.float32) * (b - a)
    return picture


def _outline(shape: Array, u: Array, v: Array) -> Array:
    """Signed distance in object units, (N, S, S); outside the tables it's simply far."""
    scale = (_TABLE_SIDE - 1) / (2 * _TABLE_REACH)
    col = np.clip((u + _TABLE_REACH) * scale, 0, _TABLE_SIDE - 1.001)
    row = np.clip((v + _TABLE_REACH) * scale, 0, _TABLE_SIDE - 1.001)
    c, r = col.astype(np.int32), row.astype(np.int32)
    fc, fr = col - c, row - r
    flat = _outlines().reshape(-1)
    base = (shape[:, None, None].astype(np.int32) * _TABLE_SIDE + r) * _TABLE_SIDE + c
    above = flat[base] * (1 - fc) + flat[base + 1] * fc
    below = flat[base + _TABLE_SIDE] * (1 - fc) + flat[base + _TABLE_SIDE + 1] * fc
    return above * (1 - fr) + below * fr


def _draw_clutter(picture: Array, x: Array, y: Array, rng: np.random.Generator) -> None:
    """One small plain thing per picture, near its rim, of any shape and colour."""
    n, side = x.shape[0], x.shape[-1]
    angle = _uniform(rng, n, 0, 2 * np.pi)
    radius = _uniform(rng, n, 0.1, 0.2)
    u = (x - 0.95 * np.cos(angle)) / radius
    v = (y - 0.95 * np.sin(angle)) / radius
    distance = _outline(rng.integers(0, len(SHAPES), n), u, v)
    palette = np.array(list(COLOURS.values()))
    paint = _jitter(rng, palette[rng.integers(0, len(palette), n)], 0.1)[:, None, None]
    _paint(picture, paint, np.clip(0.5 - distance * radius * side / 2, 0, 1))


def _draw_objects(
    picture: Array, scene: Scene, x: Array, y: Array, look: Look, rng: np.random.Generator
) -> Array:
    """Paint the objects; returns how much of each pixel they cover, (N, S, S)."""
    n, side = scene.size, x.shape[-1]
    swatch = scene.shape == len(SHAPES)
    radius = _uniform(rng, n, *look.radius)
    dx, dy = _uniform(rng, n, -look.shift, look.shift), _uniform(rng, n, -look.shift, look.shift)
    angle = _uniform(rng, n, -look.turn, look.turn)
    c, s = np.cos(angle) / radius, np.sin(angle) / radius
    u, v = (x - dx) * c + (y - dy) * s, (y - dy) * c - (x - dx) * s

    unit = radius * (side / 2)  # pixels
    distance = _outline(np.where(swatch, 0, scene.shape), u, v) * unit
    if look.line is not None:
        distance = np.abs(distance) - 0.5 * look.line * unit
    full = swatch[:, None, None]
    mask = np.where(full, 1.0, np.clip(0.5 - distance, 0, 1)).astype(np.float32)
    rim = np.where(full, 0.0, np.clip(0.5 - distance + look.rim * unit, 0, 1)).astype(np.float32)
    _paint(picture, np.float32(0.97), rim)
    _paint(picture, _fill(scene, u, v, look, rng), mask)
    return mask


def _fill(scene: Scene, u: Array, v: Array, look: Look, rng: np.random.Generator) -> Array:
    """The object's own surface, (N, S, S, 3): its colour and the texture's second one."""
    n = scene.size
    palette = np.array(list(COLOURS.values()))
    main = _jitter(rng, palette[scene.colour], look.hue)
    # The second colour is the main one towards white or black, whichever is farther.
    pole = np.where(main.mean(1, keepdims=True) < 0.5, 1.0, 0.0)
    share = 0.55 + 0.35 * rng.random((n, 1))
    second = (main + share * (pole - main)).astype(np.float32)
    slant = _uniform(rng, n, -0.9, 0.9)
    period = _uniform(rng, n, 2.2, 3.2)
    offset = _uniform(rng, n, 0, 1)
    tu = (u * np.cos(slant) + v * np.sin(slant)) * period
    tv = (v * np.cos(slant) - u * np.sin(slant)) * period
    mix = np.zeros_like(u)
    for index, (name, texture) in enumerate(TEXTURES.items()):
        rows = np.flatnonzero(scene.texture == index)
        if len(rows):
            # Rings keep their centre on the object; every other texture may start anywhere.
            start = 0 if name == "ringed" else offset[rows]
            mix[rows] = texture(tu[rows] + start, tv[rows] + start, rng)
    main, second = main[:, None, None], second[:, None, None]
    return main + mix[..., None] * (second - main)


def _develop(picture: Array, x: Array, y: Array, look: Look, rng: np.random.Generator) -> Array:
    """Light, contrast, tint, blur, noise; then round to uint8."""
    n = len(picture)
    toward = _uniform(rng, n, 0, 2 * np.pi)
    slope = 0.5 + 0.35 * (x * np.cos(toward) + y * np.sin(toward))
    dim = _uniform(rng, n, look.light, 1.0)
    picture = picture * np.asarray(look.tint, np.float32)
    picture *= (dim + (1 - dim) * slope)[..., None]
    contrast = _uniform(rng, n, *look.contrast)[..., None]
    picture = 0.5 + contrast * (picture - 0.5)
    if look.blur:
        soft = _uniform(rng, n, 0.6 * look.blur, look.blur)[..., None]
        for _ in range(2):
            picture = picture + soft * (_smooth(picture) - picture)
    if look.noise:
        picture = picture + look.noise * rng.standard_normal(picture.shape, dtype=np.float32)
    return np.rint(np.clip(picture, 0, 1) * 255).astype(np.uint8)


def _smooth(picture: Array) -> Array:
    """A 3 × 3 binomial blur; the rim repeats."""
    for axis in (1, 2):
        before = np.roll(picture, 1, axis)
        after = np.roll(picture, -1, axis)
        picture = 0.25 * before + 0.5 * picture + 0.25 * after
    return picture


# ---------------------------------------------------------------- words


def phrase(
    shape: str | None = None,
    colour: str | None = None,
    texture: str | None = None,
    ground: str | None = None,
) -> str:
    """The name of a thing by the attributes given: `striped red star on sand`, `red thing`."""
    words = [word for word in (texture, colour, shape or "thing") if word]
    return " ".join(words) + (f" on {ground}" if ground else "")
