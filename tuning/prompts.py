"""Prompts to learn, as the methods combine them.

Shape letters: method.py's.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from clip.prompting import Encoders
from dassl.config import CfgNode, public
from dassl.utils import UserError

WORDS = "a photo of a"  # what CTX_INIT: True means in configs of KgCoOp's lineage


def public_words(cfg: CfgNode, key: str, none: str | None = "") -> None:
    """Let `key` (…CTX_INIT) also be True, the usual words, or False: `none`."""
    public(cfg, key, values={True: WORDS, False: none})


def resolve_words(node: CfgNode) -> None:
    """Set N_CTX to what CTX_INIT makes of it: as many vectors as words."""
    if node.CTX_INIT:
        node.N_CTX = len(node.CTX_INIT.replace("_", " ").split())


def template_of(words: str) -> str:
    """The template of frozen words before a class name: "a photo of a" → "a photo of a {}."."""
    return f"{words.replace('_', ' ')} {{}}.".strip()


def check_depth(key: str, depth: int, layers: int) -> None:
    """Raise UserError unless 1 ≤ depth ≤ layers."""
    if not 1 <= depth <= layers:
        raise UserError(f"{key} is {depth}; the tower has {layers} layers: set 1 to {layers}")


def deep_prompts(depth: int, n: int, width: int) -> nn.ParameterList:
    """The prompts below the first layer: J−1 parameters (N,width) from N(0, .02²)."""
    return nn.ParameterList(torch.randn(n, width) * 0.02 for _ in range(depth - 1))


def stacked(prompts: nn.ParameterList | list[torch.Tensor]) -> torch.Tensor | None:
    """J−1 tensors (N,width) → (J−1,N,width), None for none."""
    return torch.stack(list(prompts)) if len(prompts) else None


class VisionPrompts(nn.Module):
    """Deep prompts of the image tower. prompts: (N,d_v); deep: J−1 of (N,d_v); N(0, .02²)."""

    def __init__(self, n: int, depth: int, width: int) -> None:
        super().__init__()
        self.prompts = nn.Parameter(torch.randn(n, width) * 0.02)
        self.deep = deep_prompts(depth, n, width)

    def forward(self) -> tuple[torch.Tensor, torch.Tensor | None]:
        """→ (N,d_v) and (J−1,N,d_v), as `ImageEncoder` takes them."""
        return self.prompts, stacked(self.deep)


@dataclass(frozen=True)
class StartingContext:
    """Where a context starts from.

    vectors: (M,d_t) fp32. words: the token ids of its initial words that have no vector; they stay
    in the prompts, between context and class name. shown: what to print of it.
    """

    vectors: torch.Tensor
    words: tuple[int, ...]
    shown: str


def starting_context(
    encoders: Encoders, words: str, n_ctx: int, vectors: int | None = None
) -> StartingContext:
    """A context that starts from some words, or from N(0, .02²).

    As in the original code, words make as many vectors as there are words; what tokens they have
    beyond that stay frozen in the prompts.

    Args:
        encoders: whose token embeddings to take.
        words: "" for a random start.
        n_ctx: M of a random start.
        vectors: M, if not the number of words; with more vectors than tokens the start is random.
    """
    words = words.replace("_", " ").strip()
    ids = encoders.text.token_ids(words)
    if words and (vectors or 0) > len(ids):
        print(f'"{words}" has {len(ids)} tokens for {vectors} vectors: they start at random')
    elif words:
        n = vectors or len(words.split())
        rest = f" (vectors for the first {n} tokens, the others stay)" if n < len(ids) else ""
        return StartingContext(encoders.text.embed(ids[:n]), tuple(ids[n:]), f'"{words}"{rest}')
    n = vectors or n_ctx
    random = torch.randn(n, encoders.text.width) * 0.02
    return StartingContext(random, (), f'"{" ".join(["X"] * n)}"')
