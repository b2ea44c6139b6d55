"""Dassl's `dassl.modeling`: registries of backbones, heads and networks.

They are empty: CLIP is the backbone here, and a file that needs another one registers it.
"""

from __future__ import annotations

from typing import Any

from torch import nn

from dassl.utils import Registry

__all__ = [
    "BACKBONE_REGISTRY",
    "HEAD_REGISTRY",
    "NETWORK_REGISTRY",
    "Backbone",
    "build_backbone",
    "build_head",
    "build_network",
]

BACKBONE_REGISTRY = Registry("BACKBONE")
HEAD_REGISTRY = Registry("HEAD")
NETWORK_REGISTRY = Registry("NETWORK")


class Backbone(nn.Module):
    """Images (B, 3, height, width) to features (B, `out_features`)."""

    out_features: int


def _build(registry: Registry, name: str, verbose: bool, arguments: dict[str, Any]) -> nn.Module:
    """Return the registered `name`, made from `arguments`. Raises UserError if it is unknown."""
    make = registry.get(name)
    if verbose:
        print(f"{registry.what.capitalize()}: {name}")
    return make(**arguments)


def build_backbone(name: str, verbose: bool = True, **kwargs: Any) -> nn.Module:
    """Return a backbone. Raises UserError naming the registered ones if it is not one."""
    return _build(BACKBONE_REGISTRY, name, verbose, kwargs)


def build_head(name: str, verbose: bool = True, **kwargs: Any) -> nn.Module:
    """Return a head. Raises UserError naming the registered ones if it is not one."""
    return _build(HEAD_REGISTRY, name, verbose, kwargs)


def build_network(name: str, verbose: bool = True, **kwargs: Any) -> nn.Module:
    """Return a network. Raises UserError naming the registered ones if it is not one."""
    return _build(NETWORK_REGISTRY, name, verbose, kwargs)
