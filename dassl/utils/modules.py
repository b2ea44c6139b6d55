"""Helpers for `nn.Module`s."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch
    from torch import nn


def count_num_param(model: nn.Module | Iterable[nn.Parameter]) -> int:
    """Return the number of parameters (not of trainable ones alone)."""
    from torch import nn

    parameters = model.parameters() if isinstance(model, nn.Module) else model
    return sum(parameter.numel() for parameter in parameters)


def shared(tensor: torch.Tensor) -> torch.Tensor:
    """Move a small tensor to memory that worker processes share.

    Raises OSError where there is no room for that: often /dev/shm, in a container.
    """
    try:
        return tensor.share_memory_()
    except RuntimeError:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "/dev/shm/torch") from None


def open_all_layers(model: nn.Module) -> None:
    """Make all of `model` trainable."""
    model.train()
    model.requires_grad_(True)


def open_specified_layers(model: nn.Module, open_layers: str | list[str]) -> None:
    """Make the named children of `model` trainable and freeze the others.

    Raises AttributeError if a name is not an attribute of `model`.
    """
    from torch import nn

    model = model.module if isinstance(model, nn.DataParallel) else model
    names = {open_layers} if isinstance(open_layers, str) else set(open_layers)
    for name in names:
        if not hasattr(model, name):
            raise AttributeError(f"{type(model).__name__} has no layer called {name!r}")
    for name, child in model.named_children():
        child.train(name in names)
        child.requires_grad_(name in names)


def init_network_weights(model: nn.Module, init_type: str = "normal", gain: float = 0.02) -> None:
    """Initialise convolutions and linear layers: normal, xavier, kaiming or orthogonal.

    Biases become 0, and normalization layers the identity.
    """
    from torch import nn

    fill = {
        "normal": lambda w: nn.init.normal_(w, 0.0, gain),
        "xavier": lambda w: nn.init.xavier_normal_(w, gain=gain),
        "kaiming": lambda w: nn.init.kaiming_normal_(w, a=0, mode="fan_in"),
        "orthogonal": lambda w: nn.init.orthogonal_(w, gain=gain),
    }
    if init_type not in fill:
        raise ValueError(f"init_type must be one of {sorted(fill)}, not {init_type!r}")
    norms = (nn.modules.batchnorm._BatchNorm, nn.modules.instancenorm._InstanceNorm)
    for module in model.modules():
        if isinstance(module, (nn.modules.conv._ConvNd, nn.Linear)):
            fill[init_type](module.weight)
        elif isinstance(module, norms) and module.weight is not None:
            nn.init.ones_(module.weight)
        else:
            continue
        if module.bias is not None:
            nn.init.zeros_(module.bias)
