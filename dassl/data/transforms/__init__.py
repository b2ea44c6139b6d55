"""Image transforms by name."""

from .transforms import CHOICES, INTERPOLATION_MODES, build_transform

__all__ = ["CHOICES", "INTERPOLATION_MODES", "build_transform"]
