"""CLIP under OpenAI's public API: `clip.load`, `clip.tokenize`, `clip.available_models`."""

from .clip import available_models, load, tokenize

__all__ = ["available_models", "load", "tokenize"]
