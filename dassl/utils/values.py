"""Conversions of plain values."""

from __future__ import annotations

import math
from typing import Any

from .errors import UserError


def check_percent(value: Any, what: str) -> float:
    """Return `value` as a float. Raises UserError, naming it as `what`, unless it is in 0 … 100."""
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not is_number or not math.isfinite(value) or not 0 <= value <= 100:
        raise UserError(f"{what} is {value!r}, no percentage")
    return float(value)


def printable(text: str) -> str:
    """Return text with control characters and lone surrogates (of names not UTF-8) escaped."""
    return "".join(
        c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text
    )


def tolist_if_not(x: Any) -> list:
    """Return `x` itself if it is a list, else a list holding it."""
    return x if isinstance(x, list) else [x]
