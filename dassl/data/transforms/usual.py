"""The steps that nearly every view takes, on PIL images, with torchvision's numbers and draws.

Importing torchvision takes longer than importing PyTorch, so these go without it; the rarer steps
are torchvision's own. What they print is part of the key of cached features.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image

INTERPOLATIONS = {
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "nearest": Image.Resampling.NEAREST,
}
_ATTEMPTS = 10  # at a random crop that lies inside the image


def resize(image: Image.Image, size: Sequence[int], interpolation: str) -> Image.Image:
    """The image at this (height, width)."""
    height, width = size
    return image.resize((width, height), INTERPOLATIONS[interpolation])


def crop(image: Image.Image, top: int, left: int, height: int, width: int) -> Image.Image:
    """A window of the image; black where it reaches beyond it."""
    return image.crop((left, top, left + width, top + height))


class Compose:
    """One step after the other."""

    def __init__(self, transforms: Sequence[Callable[[Any], Any]]) -> None:
        self.transforms = transforms

    def __call__(self, image: Any) -> Any:
        """What the last step returns."""
        for transform in self.transforms:
            image = transform(image)
        return image

    def __repr__(self) -> str:
        lines = "".join(f"\n    {transform}" for transform in self.transforms)
        return f"{type(self).__name__}({lines}\n)"


class Resize:
    """To (height, width); or the shorter side to one size, the longer one in proportion."""

    def __init__(self, size: int | Sequence[int], interpolation: str = "bilinear") -> None:
        self.size = size
        self.interpolation = interpolation

    def __call__(self, image: Image.Image) -> Image.Image:
        """Return the image at its new size."""
        if not isinstance(self.size, int):
            return resize(image, self.size, self.interpolation)
        short, long = sorted(image.size)
        longer = int(self.size * long / short)
        upright = image.width <= image.height
        size = (longer, self.size) if upright else (self.size, longer)
        return resize(image, size, self.interpolation)

    def __repr__(self) -> str:
        how = f"interpolation={self.interpolation}, max_size=None, antialias=True"
        return f"{type(self).__name__}(size={self.size}, {how})"


class CenterCrop:
    """The middle (height, width) of an image, with black around a smaller one."""

    def __init__(self, size: Sequence[int]) -> None:
        self.size = tuple(size)

    def __call__(self, image: Image.Image) -> Image.Image:
        """Return the window, of halves to the even one; of what a side lacks the larger half ends.

        So rounds torchvision.
        """
        height, width = self.size
        top, left = _middle(image.height, height), _middle(image.width, width)
        return crop(image, top, left, height, width)

    def __repr__(self) -> str:
        return f"{type(self).__name__}(size={self.size})"


def _middle(whole: int, part: int) -> int:
    return -((part - whole) // 2) if part > whole else round((whole - part) / 2)


class RandomResizedCrop:
    """A random window of `scale` of the area and a side ratio in `ratio`, resized to the size.

    arXiv 1409.4842. Where ten draws don't fit the image, its middle with the nearest ratio.
    """

    def __init__(
        self,
        size: Sequence[int],
        scale: Sequence[float] = (0.08, 1.0),
        ratio: Sequence[float] = (3 / 4, 4 / 3),
        interpolation: str = "bilinear",
    ) -> None:
        self.size = tuple(size)
        self.scale = scale
        self.ratio = ratio
        self.interpolation = interpolation
        self._log_ratio: list[float] = torch.tensor(tuple(ratio)).log().tolist()

    def __call__(self, image: Image.Image) -> Image.Image:
        """Return the window at the size."""
        return resize(crop(image, *self.window(image)), self.size, self.interpolation)

    def window(self, image: Image.Image) -> tuple[int, int, int, int]:
        """Draw (top, left, height, width)."""
        width, height = image.size
        for _ in range(_ATTEMPTS):
            area = height * width * torch.empty(1).uniform_(*self.scale).item()
            ratio = torch.empty(1).uniform_(*self._log_ratio).exp_().item()
            across, down = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
            if 0 < across <= width and 0 < down <= height:
                top = int(torch.randint(height - down + 1, (1,)))
                left = int(torch.randint(width - across + 1, (1,)))
                return top, left, down, across
        across, down = width, height
        if width / height < min(self.ratio):
            down = round(width / min(self.ratio))
        elif width / height > max(self.ratio):
            across = round(height * max(self.ratio))
        return (height - down) // 2, (width - across) // 2, down, across

    def __repr__(self) -> str:
        scale, ratio = (tuple(round(value, 4) for value in v) for v in (self.scale, self.ratio))
        how = f"interpolation={self.interpolation}, antialias=True"
        return f"{type(self).__name__}(size={self.size}, scale={scale}, ratio={ratio}, {how})"


class RandomHorizontalFlip:
    """With probability `p` left and right change places."""

    def __init__(self, p: float = 0.5) -> None:
        self.p = p

    def __call__(self, image: Image.Image) -> Image.Image:
        """Return the image, flipped or as it is."""
        if torch.rand(1) >= self.p:
            return image
        return image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)

    def __repr__(self) -> str:
        return f"{type(self).__name__}(p={self.p})"


class ToTensor:
    """An image of 8 bits a channel → (channels, height, width) in [0, 1], of the default type."""

    def __call__(self, image: Image.Image) -> torch.Tensor:
        """Return the tensor."""
        pixels = torch.from_numpy(np.array(image, np.uint8))
        pixels = pixels.view(image.height, image.width, -1).permute(2, 0, 1).contiguous()
        return pixels.to(torch.get_default_dtype()).div_(255)

    def __repr__(self) -> str:
        return f"{type(self).__name__}()"


class Normalize:
    """Each channel less its mean, over its standard deviation."""

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        self.mean = mean
        self.std = std

    def __call__(self, image: torch.Tensor) -> torch.Tensor:
        """Return a normalized copy of a (channels, height, width) tensor."""
        mean, std = (torch.tensor(v, dtype=image.dtype)[:, None, None] for v in self._numbers)
        return image.sub(mean).div_(std)

    @property
    def _numbers(self) -> tuple[list[float], list[float]]:
        return list(self.mean), list(self.std)

    def __repr__(self) -> str:
        return f"{type(self).__name__}(mean={self.mean}, std={self.std})"
