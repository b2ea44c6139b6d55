"""Image transforms by name."""

from .transforms import CHOICES, INTERPOLATION_MODES, build_transform, corruption_of

__all__ = ["CHOICES", "INTERPOLATION_MODES", "build_transform", "corruption_of"]
