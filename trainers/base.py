"""For trainer files written when `tuning/` stood here: what they import from `.base`. Skip it."""

from __future__ import annotations

import torch

from clip.prompting import Encoders
from tuning.method import Classes, Features, Method, cosine_logits, unit
from tuning.prompts import starting_context
from tuning.trainer import PromptTrainer

__all__ = [
    "Classes",
    "Features",
    "Method",
    "PromptTrainer",
    "cosine_logits",
    "starting_context",
    "unit",
    "words_or_random",
]


def words_or_random(
    encoders: Encoders, words: str, n_ctx: int, limit: int | None = None
) -> tuple[torch.Tensor, str]:
    """`starting_context` as (vectors (M,d_t) fp32, what to print of them)."""
    start = starting_context(encoders, words, n_ctx, limit)
    return start.vectors, start.shown
