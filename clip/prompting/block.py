"""One transformer block as the changes leave it, read where it is needed.

`Layer` is the fast form, `plain_block` the definition. Shape letters: the package's.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from operator import attrgetter

import torch
import torch.nn.functional as F
from torch import nn
from torch.func import functional_call

from ..fused import linear, mlp
from ..model import ResidualAttentionBlock
from ..row import Row, attend_row
from .changes import Branch, Change, LowRank, Weights, at_layer, own_tensors

# A low-rank part's product within a block.
_PRODUCTS = {"o": "attn.out_proj", "fc": "mlp.c_fc", "proj": "mlp.c_proj"}


def heads_apart(x: torch.Tensor, heads: int) -> torch.Tensor:
    """(…,L,W) → (…,H,L,W/H)."""
    return x.unflatten(-1, (heads, -1)).transpose(-2, -3)


def heads_joined(y: torch.Tensor) -> torch.Tensor:
    """(…,H,L,W/H) → (…,L,W)."""
    return y.transpose(-2, -3).flatten(-2)


class Layer:
    """A block with its own changes. What they leave alone takes the frozen block's fast parts."""

    def __init__(self, block: ResidualAttentionBlock, changes: Sequence[Change] = ()) -> None:
        self.block = block
        self.changes = changes
        self.heads = block.attn.num_heads
        weights = [c for c in changes if isinstance(c, Weights)]
        self.own = own_tensors(weights, dict(block.named_parameters())) if weights else {}
        self.low_rank = [c for c in changes if isinstance(c, LowRank)]
        self.branches = [c for c in changes if isinstance(c, Branch)]
        parts = {change.part for change in self.low_rank}
        self.own_mlp = bool(parts & {"fc", "proj"}) or any(n.startswith("mlp.") for n in self.own)

    def _tensor(self, name: str) -> torch.Tensor:
        own = self.own.get(name)
        return attrgetter(name)(self.block) if own is None else own

    def norm(self, name: str, x: torch.Tensor) -> torch.Tensor:
        """name: ln_1 or ln_2."""
        own = {k: self.own[f"{name}.{k}"] for k in ("weight", "bias") if f"{name}.{k}" in self.own}
        module = getattr(self.block, name)
        return functional_call(module, own, x) if own else module(x)

    def project(self, y: torch.Tensor, parts: slice) -> torch.Tensor:
        """Rows of the stacked q, k, v projection: parts 0:1 q, 1:3 k and v, 0:3 all."""
        width = y.shape[-1]
        rows = slice(parts.start * width, parts.stop * width)
        weight, bias = (self._tensor(f"attn.in_proj_{kind}") for kind in ("weight", "bias"))
        out = linear(y, weight[rows], bias[rows])
        letters = "qkv"[parts]
        if any(change.part in letters for change in self.low_rank):
            chunks = zip(letters, out.chunk(len(letters), dim=-1), strict=True)
            out = torch.cat([self._lower(part, y, chunk) for part, chunk in chunks], dim=-1)
        return out

    def _lower(self, part: str, x: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
        """`out` with the low-rank changes of its product with x."""
        for change in self.low_rank:
            if change.part == part:
                out = out + change(x)
        return out

    def _product(self, part: str, x: torch.Tensor) -> torch.Tensor:
        name = _PRODUCTS[part]
        out = linear(x, self._tensor(f"{name}.weight"), self._tensor(f"{name}.bias"))
        return self._lower(part, x, out)

    def _mlp(self, y: torch.Tensor) -> torch.Tensor:
        if not self.own_mlp:
            return mlp(self.block.mlp, y)
        return self._product("proj", self.block.mlp.gelu(self._product("fc", y)))

    def finish(self, x: torch.Tensor, y: torch.Tensor, attended: torch.Tensor) -> torch.Tensor:
        """Output projection, residual and MLP.

        Args:
            x: (…,L,W), the stream where the output is read.
            y: (…,L,W), its ln_1.
            attended: (…,L,W), heads joined.
        """
        attention = self._product("o", attended)
        if not self.branches:
            x = x + attention
            return x + self._mlp(self.norm("ln_2", x))
        seen = {"input": x, "ln_1": y, "attention": attention}
        seen["middle"] = _branched(self.branches, "middle", seen, x + attention)
        seen["ln_2"] = self.norm("ln_2", seen["middle"])
        seen["mlp"] = self._mlp(seen["ln_2"])
        seen["output"] = seen["middle"] + seen["mlp"]
        return _branched(self.branches, "output", seen, seen["output"])

    def run(
        self, x: torch.Tensor, queries: int | None = None, causal: bool = False
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """One block over x (B,L,W), computed at its first `queries` tokens only.

        Returns the (B,queries,W) outputs and the keys and values (B,H,L,W/H) of all tokens.
        """
        y = self.norm("ln_1", x)
        n = x.shape[1] if queries is None else queries
        if n == x.shape[1]:
            projected = self.project(y, slice(0, 3)).chunk(3, dim=-1)
            q, k, v = (heads_apart(z, self.heads) for z in projected)
        else:
            q = heads_apart(self.project(y[:, :n], slice(0, 1)), self.heads)
            k, v = self.keys_values(y)
        if n == 0:
            return x[:, :0], k, v
        # A causal mask aligned at the first key fits a subset of first queries as well.
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=causal)
        return self.finish(x[:, :n], y[:, :n], heads_joined(mixed)), k, v

    def in_row(self, x: torch.Tensor, row: Row) -> torch.Tensor:
        """One block over a row x (K,P+S,W) of a prefix and packed suffixes."""
        y = self.norm("ln_1", x)
        return self.finish(x, y, attend_row(self.project(y, slice(0, 3)), self.heads, row))

    def keys_values(self, y: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """y: (B,L,W), the stream's ln_1 → k and v, (B,H,L,W/H) each."""
        k, v = self.project(y, slice(1, 3)).chunk(2, dim=-1)
        return heads_apart(k, self.heads), heads_apart(v, self.heads)


def _branched(
    branches: Sequence[Branch], to: str, seen: dict[str, torch.Tensor], x: torch.Tensor
) -> torch.Tensor:
    for branch in branches:
        if branch.to == to:
            x = x + branch(seen[branch.of])
    return x


def layers_of(blocks: Sequence[ResidualAttentionBlock], changes: Sequence[Change]) -> list[Layer]:
    """Every block with its own changes; `Tokens` and `NameShift` are left to the pass."""
    kinds = (Branch, LowRank, Weights)
    return [Layer(block, at_layer(changes, i, kinds)) for i, block in enumerate(blocks)]


# --- The definition -----------------------------------------------------------------------------


def plain_block(
    block: ResidualAttentionBlock, changes: Sequence[Change], x: torch.Tensor, causal: bool
) -> torch.Tensor:
    """One block over whole sequences x (B,L,W) with its changes, term by term."""
    weights = [c for c in changes if isinstance(c, Weights)]
    low_rank = [c for c in changes if isinstance(c, LowRank)]
    branches = [c for c in changes if isinstance(c, Branch)]
    grown = block.attn_mask is not None and x.shape[1] > len(block.attn_mask)
    if not (weights or low_rank or branches or grown):
        return block(x.transpose(0, 1)).transpose(0, 1)
    frozen = dict(block.named_parameters())
    w = {**frozen, **own_tensors(weights, frozen)}

    def norm(name: str, x: torch.Tensor) -> torch.Tensor:
        given = {kind: w[f"{name}.{kind}"] for kind in ("weight", "bias")}
        return functional_call(getattr(block, name), given, x)

    def product(part: str, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor):
        return F.linear(x, weight, bias) + sum(c(x) for c in low_rank if c.part == part)

    def named(part: str, x: torch.Tensor) -> torch.Tensor:
        name = _PRODUCTS[part]
        return product(part, x, w[f"{name}.weight"], w[f"{name}.bias"])

    def added(to: str, x: torch.Tensor) -> torch.Tensor:
        return sum((branch(seen[branch.of]) for branch in branches if branch.to == to), x)

    seen = {"input": x, "ln_1": norm("ln_1", x)}
    stacked = (w["attn.in_proj_weight"].chunk(3), w["attn.in_proj_bias"].chunk(3))
    q, k, v = (
        heads_apart(product(part, seen["ln_1"], *pair), block.attn.num_heads)
        for part, pair in zip("qkv", zip(*stacked, strict=True), strict=True)
    )
    scores = q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5
    if causal:
        future = torch.ones(scores.shape[-2:], device=x.device).triu(1).bool()
        scores = scores.masked_fill(future, float("-inf"))
    seen["attention"] = named("o", heads_joined(scores.softmax(dim=-1) @ v))
    seen["middle"] = added("middle", x + seen["attention"])
    seen["ln_2"] = norm("ln_2", seen["middle"])
    seen["mlp"] = named("proj", block.mlp.gelu(named("fc", seen["ln_2"])))
    seen["output"] = seen["middle"] + seen["mlp"]
    return added("output", seen["output"])


# --- What follows the blocks ----------------------------------------------------------------------


@dataclass(frozen=True)
class Head:
    """The last norm and the (W,D) projection as the changes leave them."""

    norm: Callable[[torch.Tensor], torch.Tensor]
    projection: torch.Tensor

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """x: (…,W) → (…,D)."""
        return self.norm(x) @ self.projection


def head_of(
    norm: tuple[str, nn.Module],
    projection: tuple[str, torch.Tensor],
    changes: Sequence[Change],
    layers: int,
) -> Head:
    """norm, projection: CLIP's name and what stands there."""
    weights = at_layer(changes, layers, Weights)
    if not weights:
        return Head(norm[1], projection[1])
    frozen = {f"{norm[0]}.{name}": p for name, p in norm[1].named_parameters()}
    own = own_tensors(weights, {**frozen, projection[0]: projection[1]})
    given = {name.rpartition(".")[2]: own[name] for name in frozen if name in own}
    return Head(partial(functional_call, norm[1], given), own.get(*projection))
