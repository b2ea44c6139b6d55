"""Conversions of plain values."""

from __future__ import annotations

from typing import Any


def tolist_if_not(x: Any) -> list:
    """Return `x` itself if it is a list, else a list holding it."""
    return x if isinstance(x, list) else [x]
