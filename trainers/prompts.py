"""Prompts to learn, as the methods combine them.

Letters in shape comments: M context tokens or N prompts per layer, J prompted layers, d_t and d_v
the widths of the text and the image tower.
"""

from __future__ import annotations

import torch
from torch import nn

from dassl.utils import UserError


def check_depth(key: str, depth: int, layers: int) -> None:
    """Raise UserError unless 1 ≤ depth ≤ layers."""
    if not 1 <= depth <= layers:
        raise UserError(f"{key} is {depth}; the tower has {layers} layers: set 1 to {layers}")


def deep_prompts(depth: int, n: int, width: int) -> nn.ParameterList:
    """The prompts below the first layer: J−1 parameters (N,width) from N(0, .02²)."""
    return nn.ParameterList(torch.randn(n, width) * 0.02 for _ in range(depth - 1))


def stacked(prompts: nn.ParameterList | list[torch.Tensor]) -> torch.Tensor | None:
    """J−1 tensors (N,width) → (J−1,N,width), None for none."""
    return torch.stack(list(prompts)) if len(prompts) else None


class VisionPrompts(nn.Module):
    """Deep prompts of the image tower. prompts: (N,d_v); deep: J−1 of (N,d_v); N(0, .02²)."""

    def __init__(self, n: int, depth: int, width: int) -> None:
        super().__init__()
        self.prompts = nn.Parameter(torch.randn(n, width) * 0.02)
        self.deep = deep_prompts(depth, n, width)

    def forward(self) -> tuple[torch.Tensor, torch.Tensor | None]:
        """→ (N,d_v) and (J−1,N,d_v), as `ImageEncoder` takes them."""
        return self.prompts, stacked(self.deep)
