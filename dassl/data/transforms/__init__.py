"""Image transforms by name."""

from typing import Any

from .transforms import CHOICES, build_transform, corruption_of

__all__ = ["CHOICES", "INTERPOLATION_MODES", "build_transform", "corruption_of"]


def __getattr__(name: str) -> Any:
    """INTERPOLATION_MODES, made when asked for."""
    from . import transforms

    if name != "INTERPOLATION_MODES":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return transforms.INTERPOLATION_MODES
