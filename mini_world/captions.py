"""What pre-training sees: drawn images, and captions that are true of them."""

from dataclasses import dataclass

import numpy as np
import torch

from clip import tokenize
from clip.open_clip_parts import imagenet_templates, selected_imagenet_templates

from .drawing import STYLES, draw, phrase, random_scenes
from .outlines import SHAPES, SWATCH
from .textures import COLOURS, GROUNDS, TEXTURES

SIDE = 48  # pixels

NAMES = {
    "shape": [*SHAPES, SWATCH],
    "colour": list(COLOURS),
    "texture": list(TEXTURES),
    "ground": list(GROUNDS),
    "style": list(STYLES),
}


# Which attributes the captions of a batch name, and how often. Shape is the slowest to learn.
MENTIONS = {
    ("shape",): 0.28,
    ("colour",): 0.02,
    ("texture",): 0.05,
    ("shape", "colour"): 0.22,
    ("shape", "texture"): 0.11,
    ("colour", "texture"): 0.05,
    ("shape", "ground"): 0.07,
    ("shape", "colour", "texture"): 0.12,
    ("shape", "colour", "texture", "ground"): 0.08,
}


STYLE_SHARE = 0.15  # of the batches whose captions name the style too


# A learned context is up to 16 tokens that are no words one knows. From this step on, half of the
# captions begin with as many random words, so that the text tower has seen names at any place.
LONG_FROM, LONGEST = 5200, 16


STYLE_RATES = {"clear": 0.6, "dark": 0.1, "bright": 0.1, "blurry": 0.1, "grainy": 0.1}


PLAIN_TEMPLATES = ["a photo of a {}.", "a photo of a {}.", "a photo of the {}.", "a {}.", "{}"]


STYLED_TEMPLATES = ["a {style} photo of a {}.", "a {style} photo of the {}.", "a {style} {}."]


# The prompts of prompt tuning's usual data sets: their words become known to the text tower.
DOWNSTREAM_TEMPLATES = [
    "a photo of a {}, a type of pet.",
    "a photo of a {}, a type of flower.",
    "a photo of a {}, a type of aircraft.",
    "a photo of a {}, a type of texture.",
    "a photo of {}, a type of food.",
    "a centered satellite photo of {}.",
    "a photo of a person doing {}.",
    "{} texture.",
    "a photo of one {}.",
    "a picture of a {}.",
    "an image of a {}.",
    "this is a photo of a {}.",
    "there is a {} in the picture.",
]


def neutral_templates() -> list[str]:
    """Templates that state no attribute: OpenAI's and the usual data sets' own."""
    known = [*imagenet_templates(), *selected_imagenet_templates(), *DOWNSTREAM_TEMPLATES]
    claims = {word for names in NAMES.values() for word in names}
    return sorted({t for t in known if not claims & set(t.replace(".", " ").split())})


@dataclass
class Pool:
    """Drawn images (n,3,I,I) uint8 and what is on them: attribute name → (n,) indices."""

    images: torch.Tensor
    attributes: dict[str, np.ndarray]


def held_out(seed: int, share: float = 0.08) -> np.ndarray:
    """(shapes, colours, textures) bool: combinations that pre-training never shows."""
    rng = np.random.default_rng((seed, 1))
    return rng.random((len(SHAPES) + 1, len(COLOURS), len(TEXTURES))) < share


def draw_pool(
    seed: int, size: int, out: np.ndarray, unseen: bool = False, part: int = 2, side: int = SIDE
) -> Pool:
    """Draw `size` images in every style, of combinations outside `out` (or only inside it)."""
    images, parts = [], []
    chunk = 512
    rates = [STYLE_RATES[name] for name in STYLES]
    for start in range(0, size, chunk):
        rng = np.random.default_rng((seed, part, start))
        n = min(chunk, size - start)
        scene = random_scenes(rng, n * (40 if unseen else 2))
        keep = out[scene.shape, scene.colour, scene.texture] == unseen
        rows = np.flatnonzero(keep)[:n]
        scene = scene.take(rows)
        style = rng.choice(len(STYLES), n, p=rates)
        picture = np.empty((n, side, side, 3), np.uint8)
        for index, look in enumerate(STYLES.values()):
            which = np.flatnonzero(style == index)
            if len(which):
                picture[which] = draw(scene.take(which), side, look, rng)
        images.append(torch.from_numpy(picture).permute(0, 3, 1, 2).contiguous())
        ground = np.where(scene.shape == len(SHAPES), -1, scene.ground)
        parts.append(
            {
                "shape": scene.shape,
                "colour": scene.colour,
                "texture": scene.texture,
                "ground": ground,
                "style": style,
            }
        )
    return Pool(torch.cat(images), {k: np.concatenate([p[k] for p in parts]) for k in NAMES})


def name_of(mentioned: tuple[str, ...], values: tuple[int, ...]) -> str:
    """The class name that states these attributes; an unseen ground (−1) is left out."""
    stated = dict(zip(mentioned, values, strict=True))
    words = {k: NAMES[k][v] for k, v in stated.items() if k != "style" and v >= 0}
    return phrase(**words)


class Vocabulary:
    """The token ids used here, numbered densely and in order (EOT stays the largest)."""

    def __init__(self, texts: list[str]) -> None:
        self.ids = tokenize(texts).unique()  # sorted; 0 is the padding

    def encode(self, texts: list[str]) -> torch.Tensor:
        """Texts → (len(texts), L) dense ids, cut after the longest text.

        Raises ValueError for a text with a token that isn't one of these.
        """
        tokens = tokenize(texts)
        tokens = tokens[:, : int(tokens.argmax(1).max()) + 1]
        dense = torch.searchsorted(self.ids, tokens.contiguous()).clamp_(max=len(self.ids) - 1)
        if not torch.equal(self.ids[dense], tokens):
            raise ValueError(f"words outside the vocabulary in {texts}")
        return dense


def all_texts() -> list[str]:
    """Texts that together hold every word a caption can hold."""
    words = [word for names in NAMES.values() for word in names]
    templates = [*PLAIN_TEMPLATES, *neutral_templates()]
    styled = [t.format("thing", style=s) for t in STYLED_TEMPLATES for s in STYLES]
    return [t.format("thing on X") for t in templates] + [f"a {w}." for w in words] + styled


class Captions:
    """Draws, for a batch, which attributes are named, and one caption for each true statement."""

    def __init__(self) -> None:
        self.neutral = neutral_templates()
        words = {word.strip(".,") for t in self.neutral for word in t.split() if "{" not in word}
        self.fillers = sorted(word for word in words if word.isalpha())

    def draw(
        self, pool: Pool, rows: np.ndarray, rng: np.random.Generator, long: bool = False
    ) -> tuple[list[str], np.ndarray]:
        """→ captions (n strings) and, per image, the number of its caption (B,).

        `long`: half of the captions have random words in front.
        """
        kinds, rates = list(MENTIONS), np.array(list(MENTIONS.values()))
        mentioned = kinds[rng.choice(len(kinds), p=rates / rates.sum())]
        if rng.random() < STYLE_SHARE:
            mentioned = (*mentioned, "style")
        stated = np.stack([pool.attributes[k][rows] for k in mentioned], 1)
        unique, which = np.unique(stated, axis=0, return_inverse=True)
        texts = [self._one(mentioned, tuple(v), rng, long) for v in unique]
        return texts, which.reshape(-1)

    def _one(
        self,
        mentioned: tuple[str, ...],
        values: tuple[int, ...],
        rng: np.random.Generator,
        long: bool,
    ) -> str:
        name = name_of(mentioned, values)
        if mentioned[-1] == "style":
            template = STYLED_TEMPLATES[rng.integers(len(STYLED_TEMPLATES))]
            return template.format(name, style=NAMES["style"][values[-1]])
        if long and rng.random() < 0.5:
            words = rng.choice(self.fillers, rng.integers(1, LONGEST + 1))
            return f"{' '.join(words)} {name}."
        templates = PLAIN_TEMPLATES if rng.random() < 0.5 else self.neutral
        return templates[rng.integers(len(templates))].format(name)
