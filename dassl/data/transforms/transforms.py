"""Training and test transforms, chosen by name in `INPUT.TRANSFORMS`.

All of them draw from torch's generator alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from PIL import Image

from dassl.config import CfgNode
from dassl.config.severities import OF_IMAGES
from dassl.utils import UserError, check_choice

from ..corruptions import Corrupt
from .usual import (
    INTERPOLATIONS,
    CenterCrop,
    Compose,
    Normalize,
    RandomHorizontalFlip,
    RandomResizedCrop,
    Resize,
    ToTensor,
    crop,
    resize,
)


def __getattr__(name: str) -> Any:
    """Dassl's INTERPOLATION_MODES, torchvision's by name, for transforms of one's own."""
    if name != "INTERPOLATION_MODES":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    modes = _torchvision().InterpolationMode
    return {name: modes(name) for name in INTERPOLATIONS}


def _torchvision() -> Any:
    """torchvision.transforms, for the rarer ones: its import takes two seconds."""
    from torchvision import transforms

    return transforms


class Random2DTranslation:
    """With probability `p` a random crop from the image at 1.125 × the size, else a resize."""

    def __init__(
        self,
        height: int,
        width: int,
        p: float = 0.5,
        interpolation: Any = "bilinear",  # or torchvision's of this name
    ) -> None:
        self.size = [height, width]
        self.p = p
        self.interpolation: str = getattr(interpolation, "value", interpolation)

    def __call__(self, image: Image.Image) -> Image.Image:
        """Return a PIL image of the size, translated or only resized."""
        if torch.rand(()) >= self.p:
            return resize(image, self.size, self.interpolation)
        larger = [round(side * 1.125) for side in self.size]
        top, left = (
            int(torch.randint(big - side + 1, ()))
            for big, side in zip(larger, self.size, strict=True)
        )
        return crop(resize(image, larger, self.interpolation), top, left, *self.size)

    def __repr__(self) -> str:
        return f"{type(self).__name__}(size={self.size}, p={self.p})"


class Cutout:
    """Set `n_holes` squares of `length` pixels at random centres to zero (arXiv 1708.04552)."""

    def __init__(self, n_holes: int = 1, length: int = 16) -> None:
        self.n_holes = n_holes
        self.length = length

    def __call__(self, image: torch.Tensor) -> torch.Tensor:
        """Return a copy of a (3, height, width) tensor with the squares in it."""
        image = image.clone()  # (3, height, width)
        half = self.length // 2
        for _ in range(self.n_holes):
            y, x = (int(torch.randint(side, ())) for side in image.shape[1:])
            image[:, max(y - half, 0) : y + half, max(x - half, 0) : x + half] = 0
        return image

    def __repr__(self) -> str:
        return f"{type(self).__name__}(n_holes={self.n_holes}, length={self.length})"


class GaussianNoise:
    """Add noise N(mean, std²) to every value, with probability `p`."""

    def __init__(self, mean: float = 0.0, std: float = 0.15, p: float = 0.5) -> None:
        self.mean = mean
        self.std = std
        self.p = p

    def __call__(self, image: torch.Tensor) -> torch.Tensor:
        """Return a tensor with noise, or as it is."""
        if torch.rand(()) >= self.p:
            return image
        return image + torch.randn(image.shape) * self.std + self.mean

    def __repr__(self) -> str:
        return f"{type(self).__name__}(mean={self.mean}, std={self.std}, p={self.p})"


class InstanceNormalization:
    """Give each channel of an image mean 0 and standard deviation 1."""

    def __init__(self, eps: float = 1e-8) -> None:
        self.eps = eps

    def __call__(self, image: torch.Tensor) -> torch.Tensor:
        """Return a (3, height, width) tensor of mean 0 and deviation 1."""
        mean = image.mean(dim=(1, 2), keepdim=True)
        std = image.std(dim=(1, 2), keepdim=True)
        return (image - mean) / (std + self.eps)

    def __repr__(self) -> str:
        return f"{type(self).__name__}(eps={self.eps})"


def _interpolation(node: CfgNode) -> str:
    check_choice("INPUT.INTERPOLATION", node.INTERPOLATION, INTERPOLATIONS)
    return node.INTERPOLATION


def _auto_augment(policy: str) -> Callable[[CfgNode], Any]:
    def make(node: CfgNode) -> Any:
        T = _torchvision()
        return T.AutoAugment(T.AutoAugmentPolicy(policy))

    return make


def _blur(node: CfgNode) -> Any:
    T = _torchvision()
    return T.RandomApply([T.GaussianBlur(node.GB_K)], p=node.GB_P)


# name -> maker from the INPUT node, in the order of application; first on PIL images …
_ON_IMAGES: dict[str, Callable[[CfgNode], Any]] = {
    "random_translation": lambda i: Random2DTranslation(*i.SIZE, interpolation=_interpolation(i)),
    "random_crop": lambda i: _torchvision().RandomCrop(i.SIZE, padding=i.CROP_PADDING),
    "random_resized_crop": lambda i: RandomResizedCrop(
        i.SIZE, scale=i.RRCROP_SCALE, interpolation=_interpolation(i)
    ),
    "random_flip": lambda i: RandomHorizontalFlip(),
    "imagenet_policy": _auto_augment("imagenet"),
    "cifar10_policy": _auto_augment("cifar10"),
    "svhn_policy": _auto_augment("svhn"),
    "randaugment": lambda i: _torchvision().RandAugment(i.RANDAUGMENT_N, i.RANDAUGMENT_M),
    "colorjitter": lambda i: _torchvision().ColorJitter(
        i.COLORJITTER_B, i.COLORJITTER_C, i.COLORJITTER_S, i.COLORJITTER_H
    ),
    "randomgrayscale": lambda i: _torchvision().RandomGrayscale(p=i.RGS_P),
    "gaussian_blur": _blur,
}
# … then on tensors in [0, 1].
_ON_TENSORS: dict[str, Callable[[CfgNode], Any]] = {
    "cutout": lambda i: Cutout(i.CUTOUT_N, i.CUTOUT_LEN),
    "normalize": lambda i: Normalize(mean=i.PIXEL_MEAN, std=i.PIXEL_STD),
    "gaussian_noise": lambda i: GaussianNoise(i.GN_MEAN, i.GN_STD),
    "instance_norm": lambda i: InstanceNormalization(),
}
_AT_TEST = ("normalize", "instance_norm")

# center_crop needs no maker: every test image is cropped at its centre.
CHOICES = (*_ON_IMAGES, "center_crop", *_ON_TENSORS)


def build_transform(
    cfg: CfgNode,
    is_train: bool = True,
    choices: Sequence[str] | None = None,
    corrupt: Corrupt | None = None,
) -> Compose | None:
    """Return the transform from a PIL image to a (3, height, width) tensor; None with NO_TRANSFORM.

    For training: resized to `INPUT.SIZE` unless a random crop does it, then the chosen transforms
    in a fixed order. For test: the shorter side resized to max(SIZE), the centre cropped.

    Args:
        cfg: the config; its INPUT node is read.
        is_train: training or test.
        choices: names instead of `INPUT.TRANSFORMS`.
        corrupt: what happens to the cropped test image.
    """
    node = cfg.INPUT
    if node.NO_TRANSFORM:
        return None
    choices = node.TRANSFORMS if choices is None else choices
    for name in choices:
        check_choice("an entry of INPUT.TRANSFORMS", name, CHOICES)
    if is_train:
        crops = {"random_crop", "random_resized_crop"} & set(choices)
        steps = [] if crops else [Resize(node.SIZE, _interpolation(node))]
        steps += [make(node) for name, make in _ON_IMAGES.items() if name in choices]
        on_tensors = _ON_TENSORS
    else:
        steps = [Resize(max(node.SIZE), _interpolation(node)), CenterCrop(node.SIZE)]
        steps += [corrupt] if corrupt is not None else []
        on_tensors = {name: _ON_TENSORS[name] for name in _AT_TEST}
    steps.append(ToTensor())
    steps += [make(node) for name, make in on_tensors.items() if name in choices]
    if cfg.VERBOSE:
        print(f"Building transform_{'train' if is_train else 'test'}")
        print("\n".join(f"+ {step}" for step in steps))
    return Compose(steps)


def corruption_of(cfg: CfgNode) -> Corrupt | None:
    """Return what TEST.CORRUPTION does to images; None for nothing.

    Raises UserError where the config's own test transform isn't made.
    """
    name = cfg.TEST.CORRUPTION
    if name not in OF_IMAGES:
        return None
    if cfg.INPUT.NO_TRANSFORM:
        raise UserError(f"TEST.CORRUPTION {name} is of images, and INPUT.NO_TRANSFORM gives none")
    return Corrupt(name, cfg.TEST.SEVERITY)
