"""Attention of a prefix and the suffixes of all classes in one row: few kernels, some padding.

`packed.py` computes no more than it must, in buckets of classes; a GPU waits for launches instead,
so here every class has as many places as the longest, and the prefix stands among them as so many
classes of its own. What is saved is what the backward pass needs and nothing else. It can be mapped
over several runs (torch.func.vmap).

Letters in shape comments: K contexts, P prefix tokens, S suffix tokens of all classes; L tokens of
the longest suffix, R places (a multiple of L); W tower width, H heads, E = W/H.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch.autograd.function import once_differentiable

from .packed import _folded, _scale


class Row:
    """Where the tokens [prefix][suffixes] of a row have their places, and what each may see.

    places (R,): the token in each place; a prefix's or class's last one in those left over.
    back (P+S,): the place of each token. unseen (R,P+L): for the query in each place, the keys of
    the prefix, then of the query's own class, that it doesn't see. real (R,1): 0 in places left
    over.

    Args:
        prefix: P.
        lengths: the tokens of each suffix.
        device: of the indices.
    """

    def __init__(self, prefix: int, lengths: Sequence[int], device: torch.device) -> None:
        self.prefix, self.length = prefix, max(lengths)
        n = self.length
        parts = -(-prefix // n)  # so many classes' places has the prefix
        places = [min(i, prefix - 1) for i in range(parts * n)]
        back, real = list(range(prefix)), [i < prefix for i in range(parts * n)]
        start = prefix
        for length in lengths:
            back += range(len(places), len(places) + length)
            places += [start + min(i, length - 1) for i in range(n)]
            real += [i < length for i in range(n)]
            start += length
        place = torch.arange(n, device=device)
        own = torch.ones(parts * n, n, dtype=torch.bool, device=device)
        causal = place > place[:, None]
        query = torch.arange(parts * n, device=device)[:, None]
        before = torch.arange(prefix, device=device) > query
        self.unseen = torch.cat(
            [
                torch.cat([before, own], dim=1),
                torch.cat([before.new_zeros(n, prefix), causal], dim=1).repeat(len(lengths), 1),
            ]
        )
        self.places = torch.tensor(places, device=device)
        self.back = torch.tensor(back, device=device)
        self.real = torch.tensor(real, device=device)[:, None]

    def by_class(self, x: torch.Tensor) -> torch.Tensor:
        """A view: (KH,R,…) → (KHR/L,L,…)."""
        x = x.unflatten(1, (-1, self.length))
        step = x.stride(1)
        assert x.stride(0) == step * x.shape[1]
        shape = (x.shape[0] * x.shape[1], *x.shape[2:])
        return x.as_strided(shape, (step, *x.stride()[2:]), x.storage_offset())


def attend_row(qkv: torch.Tensor, heads: int, row: Row) -> torch.Tensor:
    """Causal attention in the prefix, and of each suffix to the prefix and to itself.

    Args:
        qkv: (K,P+S,3W), queries, keys and values of the row's tokens.
        heads: H.
        row: of these tokens.

    Returns:
        (K,P+S,W), heads joined.
    """
    return _RowAttention.apply(qkv, heads, row)[0]


class _RowAttention(torch.autograd.Function):
    """Keeps q, k, v and the weights, as attention needs them."""

    @staticmethod
    def forward(qkv, heads, row):
        placed = _place(qkv, 3, heads, row)  # (3,KH,R,E)
        q, k, v = placed
        keys, values = k[:, : row.prefix], v[:, : row.prefix]  # every class asks the same ones
        scores = _scores(q, keys, k, row, _scale(q)).masked_fill_(row.unseen, float("-inf"))
        weights = scores.softmax(dim=-1).to(q.dtype)
        on_prefix, on_own = weights[..., : row.prefix], weights[..., row.prefix :]
        out = on_prefix @ values
        row.by_class(out).baddbmm_(row.by_class(on_own), row.by_class(v))
        return _back(out[None], len(qkv), row), placed, weights

    @staticmethod
    def setup_context(ctx, inputs, output):
        _, ctx.heads, ctx.row = inputs
        ctx.mark_non_differentiable(*output[1:])
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*output[1:])

    @staticmethod
    @once_differentiable
    def backward(ctx, grad, *_):
        (q, k, v), weights = ctx.saved_tensors
        row, scale = ctx.row, _scale(q)
        prefix = slice(0, row.prefix)
        (g,) = _place(grad, 1, ctx.heads, row).mul_(row.real)
        down = _scores(g, v[:, prefix], v, row, 1)
        down = torch._softmax_backward_data(down, weights, -1, weights.dtype)
        of_prefix, of_own = down[..., prefix], row.by_class(down[..., row.prefix :])
        on_prefix, on_own = weights[..., prefix], row.by_class(weights[..., row.prefix :])
        grads = q.new_empty(3, *q.shape)
        to_q, to_k, to_v = grads
        to_q.baddbmm_(of_prefix, k[:, prefix], beta=0, alpha=scale)
        row.by_class(to_q).baddbmm_(of_own, row.by_class(k), alpha=scale)
        row.by_class(to_k).baddbmm_(of_own.mT, row.by_class(q), beta=0, alpha=scale)
        to_k[:, prefix].baddbmm_(of_prefix.mT, q, alpha=scale)
        row.by_class(to_v).baddbmm_(on_own.mT, row.by_class(g), beta=0)
        to_v[:, prefix].baddbmm_(on_prefix.mT, g)
        return _back(grads, len(grad), row), None, None

    @staticmethod
    def vmap(info, in_dims, qkv, heads, row):
        """Mapped over R runs: R·K contexts side by side."""
        (folded,) = _folded(info.batch_size, in_dims[:1], (qkv,))
        mixed, placed, weights = _RowAttention.apply(folded, heads, row)
        runs = (info.batch_size, -1)
        outputs = (mixed.unflatten(0, runs), placed.unflatten(1, runs), weights.unflatten(0, runs))
        return outputs, (0, 1, 0)


def _scores(
    q: torch.Tensor, prefix: torch.Tensor, own: torch.Tensor, row: Row, scale: float
) -> torch.Tensor:
    """Scaled products of q (KH,R,E) with the prefix (KH,P,E) and its own class: (KH,R,P+L)."""
    scores = q.new_empty(*q.shape[:2], row.prefix + row.length)
    scores[..., : row.prefix].baddbmm_(q, prefix.mT, beta=0, alpha=scale)
    to_own = row.by_class(scores[..., row.prefix :])
    to_own.baddbmm_(row.by_class(q), row.by_class(own).mT, beta=0, alpha=scale)
    return scores


def _place(x: torch.Tensor, parts: int, heads: int, row: Row) -> torch.Tensor:
    """(K,P+S,parts·W) → (parts,KH,R,E)."""
    x = x.unflatten(2, (parts, heads, -1)).permute(2, 0, 3, 1, 4)
    return x.index_select(3, row.places).flatten(1, 2)


def _back(x: torch.Tensor, contexts: int, row: Row) -> torch.Tensor:
    """(parts,KH,R,E) → (K,P+S,parts·W), the opposite of `_place`."""
    x = x.unflatten(1, (contexts, -1)).permute(1, 3, 0, 2, 4)
    return x.index_select(1, row.back).flatten(2)
