"""Corrupted test images, and misspelt class names: `TEST.CORRUPTION`, `TEST.SEVERITY`.

Eight corruptions of an image and one of the names, each at severities 1 to 5, in the manner of
ImageNet-C (Hendrycks and Dietterich 2019, arXiv 1903.12261): noise, blur, JPEG and contrast have
its numbers; blur is in pixels of an image of 224 a side, and scaled to others. The rest is ours.

What is drawn is a function of the image's pixels, or of the name: the same image is corrupted in
the same way in every run, process and order, and at every severity only more so.
"""

from __future__ import annotations

import hashlib
import io
import math
from collections.abc import Callable, Sequence
from itertools import count

import numpy as np
from PIL import Image, ImageFilter

from dassl.config import declare_checks, whole
from dassl.config.constraints import Check
from dassl.config.severities import AMOUNTS, CORRUPTIONS, NONE, OF_IMAGES, SEVERITIES, TYPOS
from dassl.utils import check_choice

Size = tuple[int, int]


def _noise(image: Image.Image, sd: float, draw: np.random.Generator) -> Image.Image:
    """Gaussian noise; values lie in [0, 1]."""
    return _image(_array(image) + draw.normal(0, sd, (image.height, image.width, 3)))


def _blur(image: Image.Image, sd: float, draw: np.random.Generator) -> Image.Image:
    """A Gaussian, of `sd` pixels on 224."""
    return image.filter(ImageFilter.GaussianBlur(sd * max(image.size) / 224))


def _jpeg(image: Image.Image, quality: float, draw: np.random.Generator) -> Image.Image:
    """Through a JPEG file of this quality."""
    file = io.BytesIO()
    image.save(file, "JPEG", quality=int(quality))
    return Image.open(file, formats=("JPEG",)).convert("RGB")


def _contrast(image: Image.Image, share: float, draw: np.random.Generator) -> Image.Image:
    """This share of each channel's distance to its mean."""
    array = _array(image)
    mean = array.mean(axis=(0, 1), keepdims=True)
    return _image(mean + share * (array - mean))


def _crop(image: Image.Image, share: float, draw: np.random.Generator) -> Image.Image:
    """A window of this share of both sides, anywhere, at the image's size."""
    return image.resize(
        image.size, Image.Resampling.BICUBIC, _window(image.size, share, draw.random(2))
    )


def _occlusion(image: Image.Image, share: float, draw: np.random.Generator) -> Image.Image:
    """Gray over this share of the area, anywhere."""
    box = _window(image.size, math.sqrt(share), draw.random(2))
    covered = image.copy()
    covered.paste((127, 127, 127), box)
    return covered


def _color(image: Image.Image, turn: float, draw: np.random.Generator) -> Image.Image:
    """The hue, turned by this share of the circle to either side."""
    from torchvision.transforms.functional import adjust_hue  # its import takes two seconds

    return adjust_hue(image, math.copysign(turn, draw.random() - 0.5))


def _rotation(image: Image.Image, degrees: float, draw: np.random.Generator) -> Image.Image:
    """To either side; the corners get the mean color."""
    mean = tuple(int(value) for value in (_array(image).mean(axis=(0, 1)) * 255).round())
    angle = math.copysign(degrees, draw.random() - 0.5)
    return image.rotate(angle, Image.Resampling.BILINEAR, fillcolor=mean)


Corruption = Callable[[Image.Image, float, np.random.Generator], Image.Image]
_DONE: dict[str, Corruption] = {
    "noise": _noise,
    "blur": _blur,
    "jpeg": _jpeg,
    "contrast": _contrast,
    "crop": _crop,
    "occlusion": _occlusion,
    "color": _color,
    "rotation": _rotation,
}

declare_checks(
    {
        "TEST.CORRUPTION": Check(
            f"one of {', '.join((NONE, *CORRUPTIONS))}", lambda x: x in (NONE, *CORRUPTIONS)
        ),
        "TEST.SEVERITY": whole(SEVERITIES[0], SEVERITIES[-1]),
    }
)


class Corrupt:
    """A corruption of images as a transform: PIL image → PIL image of the same size, in RGB.

    Args:
        name: one of `dassl.config.severities.OF_IMAGES`.
        severity: 1 to 5.
    """

    def __init__(self, name: str, severity: int) -> None:
        check_choice("a corruption of images", name, OF_IMAGES)
        check_choice("a severity", severity, SEVERITIES)
        self.name, self.severity = name, severity
        self._do, self.amount = _DONE[name], AMOUNTS[name][severity - 1]

    def __call__(self, image: Image.Image) -> Image.Image:
        """The corrupted image, of the same size."""
        image = image.convert("RGB")
        size = f"{image.width}x{image.height}".encode()
        return self._do(image, self.amount, _generator(self.name, size + image.tobytes()))

    def __repr__(self) -> str:
        return f"Corrupt({self.name}, severity={self.severity}, amount={self.amount:g})"


def misspelt(names: Sequence[str], severity: int) -> list[str]:
    """Class names with typing errors: as many as the severity, in at most half of the letters.

    Two neighbors swapped, a letter left out, doubled, or the one beside it on a keyboard. What has
    no letter stays; none becomes another's name.
    """
    check_choice("a severity", severity, SEVERITIES)
    taken = set(names)
    found: dict[str, str] = {}
    for name in dict.fromkeys(names):
        letters = sum(c.isalpha() for c in name)
        edits = min(severity, max(1, letters // 2)) if letters else 0
        for attempt in count():
            draw = _generator(TYPOS, f"{attempt} {name}".encode())
            text = name
            # Short names may have no free one so near: after some tries one error more.
            for _ in range(edits + attempt // 20 if edits else 0):
                text = _mistyped(text, draw)
            if not edits or text not in taken:
                break
        taken.add(text)
        found[name] = text
    return [found[name] for name in names]


_ROWS = ("qwertyuiop", "asdfghjkl", "zxcvbnm")
_BESIDE = {row[i]: row[i - 1] if i else row[1] for row in _ROWS for i in range(len(row))}


def _mistyped(text: str, draw: np.random.Generator) -> str:
    """One typing error, at one of the letters."""
    places = [i for i, c in enumerate(text) if c.isalpha()]
    i = places[draw.integers(len(places))]
    kind = draw.integers(4)
    before, letter, after = text[:i], text[i], text[i + 1 :]
    if kind == 0 and after[:1].isalpha() and after[0] != letter:
        return before + after[0] + letter + after[1:]
    if kind == 1 and len(places) > 1:
        return before + after
    beside = _BESIDE.get(letter.lower())
    if kind == 2 or beside is None:
        return before + 2 * letter + after
    return before + (beside.upper() if letter.isupper() else beside) + after


def _generator(name: str, content: bytes) -> np.random.Generator:
    """Random numbers that depend on the content alone, for each corruption its own."""
    digest = hashlib.sha256(name.encode() + b"\0" + content).digest()
    return np.random.default_rng(int.from_bytes(digest[:16], "little"))


def _window(size: Size, share: float, place: np.ndarray) -> tuple[int, int, int, int]:
    """A box of this share of both sides, `place` (2,) in [0, 1) of the way across."""
    sides = [max(1, round(side * share)) for side in size]
    left, top = (
        int(p * (side - part + 1)) for p, side, part in zip(place, size, sides, strict=True)
    )
    return left, top, left + sides[0], top + sides[1]


def _array(image: Image.Image) -> np.ndarray:
    """(H,W,3) in [0, 1]."""
    return np.asarray(image, dtype=np.float64) / 255


def _image(array: np.ndarray) -> Image.Image:
    return Image.fromarray((array.clip(0, 1) * 255).round().astype(np.uint8))
