"""A small drawn world: shapes with colours and textures on grounds, drawn in batches from a seed.

It's a fixture. Its classes are compositional ("striped red star"), so a contrastive model can be
pre-trained on captions of it in minutes, and its images are hard enough, once lit, cluttered and
compressed, that prompts have something to learn. `mini_world/data_sets.py` writes data sets of
it; `scripts/pretrain_tiny_clip.py` trains the tiny CLIP on it. See docs/mini_world.md.

Letters: n images, I pixels a side. Coordinates run over [-1, 1] from left to right and from top to
bottom. Colours are RGB in [0, 1]. Everything is float32 until the picture is rounded to uint8.
"""

from dataclasses import dataclass

import numpy as np

from .outlines import SHAPES, TABLE_REACH, TABLE_SIDE, outlines
from .textures import COLOURS, GROUNDS, TEXTURES, uniform

Array = np.ndarray


# ---------------------------------------------------------------- scenes


@dataclass(frozen=True)
class Look:
    """How pictures of a scene come out: the range of each effect.

    Pre-training and the data sets differ in this alone; the defaults are those of pre-training.

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
    """n scenes by index: shape (len(SHAPES) means the swatch), colour, texture, ground; each (n,).

    The ground of a swatch isn't seen.
    """

    shape: Array
    colour: Array
    texture: Array
    ground: Array

    @property
    def size(self) -> int:
        """How many scenes there are."""
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
    """Draw a batch of scenes. Returns uint8 (n, side, side, 3); a function of its arguments."""
    return draw_with_masks(scene, side, look, rng)[0]


def draw_with_masks(
    scene: Scene, side: int, look: Look, rng: np.random.Generator
) -> tuple[Array, Array]:
    """`draw`, and where the objects are: uint8 (n, side, side), 0 to 255."""
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
    """(n, 3) colours, each moved by up to `spread` per channel."""
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
        zoom = uniform(rng, m, 0.85, 1.2)
        mix = mixture(
            x[rows] * zoom + uniform(rng, m, -1, 1), y[rows] * zoom + uniform(rng, m, -1, 1), rng
        )
        a = _jitter(rng, np.tile(first, (m, 1)), look.hue)[:, None, None]
        b = _jitter(rng, np.tile(second, (m, 1)), look.hue)[:, None, None]
        picture[rows] = a + mix[..., None].astype(np.float32) * (b - a)
    return picture


def _outline(shape: Array, u: Array, v: Array) -> Array:
    """Signed distance in object units, (n, I, I); outside the tables it's simply far."""
    scale = (TABLE_SIDE - 1) / (2 * TABLE_REACH)
    col = np.clip((u + TABLE_REACH) * scale, 0, TABLE_SIDE - 1.001)
    row = np.clip((v + TABLE_REACH) * scale, 0, TABLE_SIDE - 1.001)
    c, r = col.astype(np.int32), row.astype(np.int32)
    fc, fr = col - c, row - r
    flat = outlines().reshape(-1)
    base = (shape[:, None, None].astype(np.int32) * TABLE_SIDE + r) * TABLE_SIDE + c
    above = flat[base] * (1 - fc) + flat[base + 1] * fc
    below = flat[base + TABLE_SIDE] * (1 - fc) + flat[base + TABLE_SIDE + 1] * fc
    return above * (1 - fr) + below * fr


def _draw_clutter(picture: Array, x: Array, y: Array, rng: np.random.Generator) -> None:
    """One small plain thing per picture, near its rim, of any shape and colour."""
    n, side = x.shape[0], x.shape[-1]
    angle = uniform(rng, n, 0, 2 * np.pi)
    radius = uniform(rng, n, 0.1, 0.2)
    u = (x - 0.95 * np.cos(angle)) / radius
    v = (y - 0.95 * np.sin(angle)) / radius
    distance = _outline(rng.integers(0, len(SHAPES), n), u, v)
    palette = np.array(list(COLOURS.values()))
    paint = _jitter(rng, palette[rng.integers(0, len(palette), n)], 0.1)[:, None, None]
    _paint(picture, paint, np.clip(0.5 - distance * radius * side / 2, 0, 1))


def _draw_objects(
    picture: Array, scene: Scene, x: Array, y: Array, look: Look, rng: np.random.Generator
) -> Array:
    """Paint the objects; returns how much of each pixel they cover, (n, I, I)."""
    n, side = scene.size, x.shape[-1]
    swatch = scene.shape == len(SHAPES)
    radius = uniform(rng, n, *look.radius)
    dx, dy = uniform(rng, n, -look.shift, look.shift), uniform(rng, n, -look.shift, look.shift)
    angle = uniform(rng, n, -look.turn, look.turn)
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
    """The object's own surface, (n, I, I, 3): its colour and the texture's second one."""
    n = scene.size
    palette = np.array(list(COLOURS.values()))
    main = _jitter(rng, palette[scene.colour], look.hue)
    # The second colour is the main one towards white or black, whichever is farther.
    pole = np.where(main.mean(1, keepdims=True) < 0.5, 1.0, 0.0)
    share = 0.55 + 0.35 * rng.random((n, 1))
    second = (main + share * (pole - main)).astype(np.float32)
    slant = uniform(rng, n, -0.9, 0.9)
    period = uniform(rng, n, 2.2, 3.2)
    offset = uniform(rng, n, 0, 1)
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
    toward = uniform(rng, n, 0, 2 * np.pi)
    slope = 0.5 + 0.35 * (x * np.cos(toward) + y * np.sin(toward))
    dim = uniform(rng, n, look.light, 1.0)
    picture = picture * np.asarray(look.tint, np.float32)
    picture *= (dim + (1 - dim) * slope)[..., None]
    contrast = uniform(rng, n, *look.contrast)[..., None]
    picture = 0.5 + contrast * (picture - 0.5)
    if look.blur:
        soft = uniform(rng, n, 0.6 * look.blur, look.blur)[..., None]
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
