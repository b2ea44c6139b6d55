"""A model without values, to be given a checkpoint's.

On the meta device PyTorch loads its compiler for whatever draws or computes a value: over a second.
"""

from __future__ import annotations

import torch
from torch import nn


def is_blank() -> bool:
    """Whether tensors made now have no values."""
    return torch.empty(0).device.type == "meta"


def random(*shape: int, scale: float) -> torch.Tensor:
    """Values from N(0, scale²), where there are any."""
    return torch.empty(shape) if is_blank() else scale * torch.randn(shape)


def embedding(number: int, width: int) -> nn.Embedding:
    """As `nn.Embedding`."""
    if is_blank():
        return nn.Embedding.from_pretrained(torch.empty(number, width), freeze=False)
    return nn.Embedding(number, width)
