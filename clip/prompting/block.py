"""One transformer block, read where it is needed. Shape letters: the package's."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from ..fused import linear, mlp
from ..model import ResidualAttentionBlock


def heads_apart(x: torch.Tensor, heads: int) -> torch.Tensor:
    """(…,L,W) → (…,H,L,W/H)."""
    return x.unflatten(-1, (heads, -1)).transpose(-2, -3)


def project(block: ResidualAttentionBlock, y: torch.Tensor, parts: slice) -> torch.Tensor:
    """Rows of the stacked q, k, v projection: parts 0:1 q, 1:3 k and v, 0:3 all."""
    width = y.shape[-1]
    rows = slice((parts.start or 0) * width, parts.stop * width)
    return linear(y, block.attn.in_proj_weight[rows], block.attn.in_proj_bias[rows])


def finish(block: ResidualAttentionBlock, x: torch.Tensor, attended: torch.Tensor) -> torch.Tensor:
    """Output projection, residual and MLP. attended: (…,L,W), heads joined."""
    x = x + linear(attended, block.attn.out_proj.weight, block.attn.out_proj.bias)
    return x + mlp(block.mlp, block.ln_2(x))


def heads_joined(y: torch.Tensor) -> torch.Tensor:
    """(…,H,L,W/H) → (…,L,W)."""
    return y.transpose(-2, -3).flatten(-2)


def run_block(
    block: ResidualAttentionBlock, x: torch.Tensor, queries: int | None = None, causal: bool = False
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """One block over x (B,L,W), computed at its first `queries` tokens only.

    Returns the (B,queries,W) outputs and the keys and values (B,H,L,W/H) of all tokens.
    """
    heads = block.attn.num_heads
    y = block.ln_1(x)
    n = x.shape[1] if queries is None else queries
    if n == x.shape[1]:
        q, k, v = (heads_apart(z, heads) for z in project(block, y, slice(0, 3)).chunk(3, dim=-1))
    else:
        q = heads_apart(project(block, y[:, :n], slice(0, 1)), heads)
        k, v = (heads_apart(z, heads) for z in project(block, y, slice(1, 3)).chunk(2, dim=-1))
    if n == 0:
        return x[:, :0], k, v
    # A causal mask aligned at the first key fits a subset of first queries as well.
    mixed = F.scaled_dot_product_attention(q, k, v, is_causal=causal)
    return finish(block, x[:, :n], heads_joined(mixed)), k, v


def per_layer(deep: torch.Tensor) -> list[torch.Tensor]:
    """(J−1,N,W) or (K,J−1,N,W) → J−1 tensors (1|K,N,W)."""
    return list((deep if deep.dim() == 4 else deep.unsqueeze(0)).unbind(1))


def replace(x: torch.Tensor, deep: list[torch.Tensor], layer: int, start: int = 1) -> torch.Tensor:
    """Before `layer`, put its prompts at tokens start…start+N−1 of x (B,L,W).

    One set of prompts serves all rows; K sets serve B/K consecutive rows each.
    """
    if not 0 < layer <= len(deep):
        return x
    vectors = deep[layer - 1]
    vectors = vectors.repeat_interleave(len(x) // len(vectors), dim=0)
    return torch.cat([x[:, :start], vectors, x[:, start + vectors.shape[1] :]], dim=1)
