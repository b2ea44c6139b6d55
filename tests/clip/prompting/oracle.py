"""A tiny CLIP, and what it takes to compare two paths through it."""

from functools import cache

import pytest
import torch

from clip.model import CLIP
from clip.prompting import Encoders

NAMES = ["dog", "golden retriever", "boeing 747-400", "cat", "a very long_name of a flower", "lynx"]
# Relative to the largest entry of the plain path's result.
TOLERANCE = {torch.float64: 1e-10, torch.float32: 2e-5}


def tiny_clip(dtype: torch.dtype, seed: int = 0) -> CLIP:
    torch.manual_seed(seed)
    model = CLIP(
        embed_dim=32,
        image_resolution=32,
        vision_layers=3,
        vision_width=64,
        vision_patch_size=8,
        context_length=77,
        vocab_size=49408,
        transformer_width=128,
        transformer_heads=2,
        transformer_layers=3,
    )
    return model.to(dtype).eval()


def random(*shape: int, dtype: torch.dtype, seed: int = 1) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=dtype).requires_grad_()


def agree(fast: torch.Tensor, plain: torch.Tensor, leaves: list[torch.Tensor]) -> None:
    """Same values, and same gradients of a random projection with respect to every leaf."""
    tolerance = TOLERANCE[plain.dtype]
    assert (fast - plain).abs().max() <= tolerance * plain.abs().max()
    weights = random(*plain.shape, dtype=plain.dtype, seed=9).detach()
    for a, b in zip(
        torch.autograd.grad((fast * weights).sum(), leaves),
        torch.autograd.grad((plain * weights).sum(), leaves),
        strict=True,
    ):
        assert b.abs().max() > 0
        assert (a - b).abs().max() <= 5 * tolerance * b.abs().max()


dtypes = pytest.mark.parametrize("dtype", [torch.float64, torch.float32])


@cache
def model_of(dtype: torch.dtype) -> CLIP:
    return tiny_clip(dtype)


def both(dtype: torch.dtype) -> tuple[Encoders, Encoders]:
    """The fast and the plain paths through one model."""
    model = model_of(dtype)
    return Encoders(model, fast=True), Encoders(model, fast=False)
