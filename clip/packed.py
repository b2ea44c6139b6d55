"""Attention of packed suffixes to a shared prefix, with few passes over memory.

What is saved is what the backward pass needs and nothing else. It can be mapped over several runs
(torch.func.vmap).

Letters in shape comments: K contexts, C classes, S suffix tokens of all classes, P prefix tokens;
L tokens of a bucket's longest suffix, T all of its tokens; W tower width, H heads, E = W/H.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch
from torch.autograd.function import once_differentiable

# Classes share a bucket while the longest suffix is at most this many times the shortest: fewer
# buckets are fewer kernels, more of them less padding.
_STRETCH = 2.2


@dataclass(frozen=True)
class _Bucket:
    """Neighbouring classes of similar length, padded to one length L for attention alone.

    A class's last token stands in its padded places: no query sees them, causally.

    classes, tokens: where they lie among those packed. future (L,L): keys after a query.
    Where something is padded: after_eot (n,1,L), keys after a class's end; pad (nL,), the token in
    each place; real (nL,1), false in padded places; packed (T,), the place of each token.
    """

    classes: slice
    tokens: slice
    length: int
    future: torch.Tensor
    after_eot: torch.Tensor | None = None
    pad: torch.Tensor | None = None
    real: torch.Tensor | None = None
    packed: torch.Tensor | None = None

    @property
    def number(self) -> int:
        return self.classes.stop - self.classes.start


class Packing:
    """How the suffixes of some classes, sorted by length, lie side by side.

    Args:
        lengths: the tokens of each suffix, ascending.
    """

    def __init__(self, lengths: Sequence[int], device: torch.device) -> None:
        ends = list(accumulate(lengths))
        self.lengths = tuple(lengths)
        self.device = device
        self.tokens = ends[-1]
        self.eot = torch.tensor(ends, device=device) - 1  # (C,): the last token of each class
        self.buckets: list[_Bucket] = []
        first = 0
        for last in range(1, len(lengths) + 1):
            if last == len(lengths) or lengths[last] > _STRETCH * lengths[first]:
                start = ends[first - 1] if first else 0
                self.buckets.append(_bucket(lengths[first:last], first, start, device))
                first = last
        self._indices: dict[tuple, torch.Tensor] = {}

    @property
    def starts(self) -> list[int]:
        """Where each suffix begins."""
        return [0, *accumulate(self.lengths)][:-1]

    def places(self, at: int, n: int) -> torch.Tensor:
        """(nC,): where the tokens at…at+n−1 of every suffix stand."""
        return self._index(("places", at, n))

    def splice(self, at: int, n: int, insert: bool) -> torch.Tensor:
        """Out of [all tokens][n new ones per class]: the new ones in front of token `at`.

        Without `insert` they stand in place of n tokens from there on.
        """
        return self._index(("splice", at, n, insert))

    def whole(self, prefix: int, length: int) -> torch.Tensor:
        """Out of [prefix tokens][all tokens][one of zeros]: the classes' `length` tokens each."""
        return self._index(("whole", prefix, length))

    def _index(self, key: tuple) -> torch.Tensor:
        if key not in self._indices:
            kind, *arguments = key
            rows: list[int] = []
            for c, (start, length) in enumerate(zip(self.starts, self.lengths, strict=True)):
                own = range(start, start + length)
                if kind == "places":
                    at, n = arguments
                    rows += own[at : at + n]
                elif kind == "splice":
                    at, n, insert = arguments
                    new = range(self.tokens + c * n, self.tokens + (c + 1) * n)
                    rows += [*own[:at], *new, *own[at if insert else at + n :]]
                else:
                    prefix, total = arguments
                    zeros = [prefix + self.tokens] * (total - prefix - length)
                    rows += [*range(prefix), *(prefix + i for i in own), *zeros]
            self._indices[key] = torch.tensor(rows, device=self.device)
        return self._indices[key]


def _bucket(lengths: Sequence[int], first: int, start: int, device: torch.device) -> _Bucket:
    n, longest, total = len(lengths), lengths[-1], sum(lengths)
    place = torch.arange(longest, device=device)
    future = place > place[:, None]
    ranges = (slice(first, first + n), slice(start, start + total))
    if total == n * longest:
        return _Bucket(*ranges, longest, future)
    sizes = torch.tensor(lengths, device=device)[:, None]  # (n,1)
    real = place < sizes  # (n,L)
    pad = sizes.cumsum(0) - sizes + torch.minimum(place, sizes - 1)
    return _Bucket(
        *ranges,
        longest,
        future,
        after_eot=~real[:, None],
        pad=pad.flatten(),
        real=real.flatten()[:, None],
        packed=real.flatten().nonzero().flatten(),
    )


def attend(
    q: torch.Tensor,
    kv: torch.Tensor,
    prefix_k: torch.Tensor,
    prefix_v: torch.Tensor,
    packing: Packing,
) -> torch.Tensor:
    """Attention of packed suffixes to the shared prefix and, causally, to their own class.

    Args:
        q: (K,S,W), or (K,C,W) with one query per class, at its last token.
        kv: (K,S,2W).
        prefix_k: (K,H,P,E).
        prefix_v: (K,H,P,E).
        packing: of the suffixes.

    Returns:
        As q.
    """
    contexts = len(prefix_k)
    inputs = (q.expand(contexts, -1, -1), kv.expand(contexts, -1, -1), prefix_k, prefix_v)
    return _PackedAttention.apply(*inputs, packing)[0]


class _PackedAttention(torch.autograd.Function):
    """Keeps q, k, v and the weights, as attention needs them."""

    @staticmethod
    def forward(*arguments):
        return _attend(*arguments)

    @staticmethod
    def setup_context(ctx, inputs, output):
        q, kv, prefix_k, prefix_v, ctx.packing = inputs
        ctx.shapes = (q.shape, kv.shape)
        ctx.mark_non_differentiable(*output[1:])
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(prefix_k, prefix_v, *output[1:])

    @staticmethod
    @once_differentiable
    def backward(ctx, grad, *_):
        prefix_k, prefix_v, *saved = ctx.saved_tensors
        q_shape, kv_shape = ctx.shapes
        at_eot = q_shape[1] < kv_shape[1]
        heads = prefix_k.shape[1]
        keys, values = prefix_k.flatten(0, 1), prefix_v.flatten(0, 1)  # (KH,P,E)
        dkeys, dvalues = torch.zeros_like(keys), torch.zeros_like(values)
        # The first layer's suffixes are constants.
        to_suffixes = ctx.needs_input_grad[0] or ctx.needs_input_grad[1]
        dq, dkv = (grad.new_empty(shape) if to_suffixes else None for shape in ctx.shapes)
        for i, bucket in enumerate(ctx.packing.buckets):
            q, k, v, on_prefix, on_own = saved[5 * i : 5 * i + 5]
            (g,) = _unpack(grad, bucket, heads, 1, at_eot)  # (KH,nQ,E)
            if bucket.real is not None and not at_eot:
                g = g * bucket.real
            # Softmax: a score's gradient is w (dw − Σ w dw), the sum over both kinds of keys.
            dprefix = (g @ values.transpose(1, 2)).mul_(on_prefix)
            down = _by_class(g, bucket) @ _by_class(v, bucket).transpose(1, 2)
            down = down.view_as(on_own).mul_(on_own)
            total = dprefix.sum(dim=-1, keepdim=True) + down.sum(dim=-1, keepdim=True)
            dprefix.addcmul_(on_prefix, total, value=-1)
            down = _by_class(down.addcmul_(on_own, total, value=-1), bucket)
            dkeys += dprefix.transpose(1, 2) @ q
            dvalues += on_prefix.transpose(1, 2) @ g
            if to_suffixes:
                to_q = dprefix @ keys
                _by_class(to_q, bucket).baddbmm_(down, _by_class(k, bucket))
                to_k = down.transpose(1, 2) @ _by_class(q, bucket)
                to_v = _by_class(on_own, bucket).transpose(1, 2) @ _by_class(g, bucket)
                assert dq is not None and dkv is not None
                _pack(dq, [to_q.mul_(_scale(q))], bucket, heads, at_eot)
                _pack(dkv, [to_k.view_as(k), to_v.view_as(v)], bucket, heads)
        return dq, dkv, dkeys.view_as(prefix_k), dvalues.view_as(prefix_v), None

    @staticmethod
    def vmap(info, in_dims, q, kv, prefix_k, prefix_v, packing):
        """Mapped over R runs: R·K contexts side by side."""
        inputs = _folded(info.batch_size, in_dims[:4], (q, kv, prefix_k, prefix_v))
        outputs = _PackedAttention.apply(*inputs, packing)
        outputs = tuple(y.unflatten(0, (info.batch_size, -1)) for y in outputs)
        return outputs, (0,) * len(outputs)


def _attend(q, kv, prefix_k, prefix_v, packing: Packing) -> tuple[torch.Tensor, ...]:
    """The result, then what the backward pass needs of each bucket.

    Per bucket of n classes, with Q = L queries of each, or one: q (KH,nQ,E), scaled; k and v
    (KH,nL,E); the weights on the prefix (KH,nQ,P) and on the class's own tokens (KH,nQ,L).
    """
    saved = []
    at_eot = q.shape[1] < kv.shape[1]
    heads = prefix_k.shape[1]
    keys, values = prefix_k.flatten(0, 1), prefix_v.flatten(0, 1)  # (KH,P,E)
    mixed = torch.empty(q.shape, dtype=q.dtype, device=q.device)
    for bucket in packing.buckets:
        (qs,) = _unpack(q, bucket, heads, 1, at_eot)
        ks, vs = _unpack(kv, bucket, heads, 2)
        qs = qs * _scale(qs)
        own = _by_class(qs, bucket) @ _by_class(ks, bucket).transpose(1, 2)  # (KHn,Q,L)
        unseen = bucket.after_eot if at_eot else bucket.future
        if unseen is not None:
            own.unflatten(0, (-1, bucket.number)).masked_fill_(unseen, float("-inf"))
        own = own.view(*qs.shape[:2], bucket.length)
        to_prefix = qs @ keys.transpose(1, 2)  # every class asks the same keys
        weights = torch.cat([to_prefix, own], dim=-1).softmax(dim=-1).to(qs.dtype)
        sizes = [to_prefix.shape[-1], bucket.length]
        on_prefix, on_own = (part.contiguous() for part in weights.split(sizes, dim=-1))
        out = on_prefix @ values
        _by_class(out, bucket).baddbmm_(_by_class(on_own, bucket), _by_class(vs, bucket))
        _pack(mixed, [out], bucket, heads, at_eot)
        saved += [qs, ks, vs, on_prefix, on_own]
    return mixed, *saved


def _scale(x: torch.Tensor) -> float:
    return x.shape[-1] ** -0.5


def _by_class(x: torch.Tensor, bucket: _Bucket) -> torch.Tensor:
    """(KH,nQ,…) → (KHn,Q,…)."""
    return x.view(len(x) * bucket.number, -1, x.shape[-1])


def _unpack(
    x: torch.Tensor, bucket: _Bucket, heads: int, parts: int, at_eot: bool = False
) -> torch.Tensor:
    """A bucket's rows with heads in front, padded: (K,S,parts·W) → (parts,KH,nL,E).

    at_eot: x is (K,C,parts·W) with one row per class → (parts,KH,n,E).
    """
    rows = x[:, bucket.classes if at_eot else bucket.tokens]
    if bucket.pad is not None and not at_eot:
        rows = rows.index_select(1, bucket.pad)
    rows = rows.unflatten(2, (parts, heads, -1)).permute(2, 0, 3, 1, 4)
    return rows.contiguous().flatten(1, 2)


def _pack(
    target: torch.Tensor,
    parts: Sequence[torch.Tensor],
    bucket: _Bucket,
    heads: int,
    at_eot: bool = False,
) -> None:
    """Write parts (KH,nL,E) to a bucket's places in `target`, the opposite of `_unpack`."""
    places = target[:, bucket.classes if at_eot else bucket.tokens]
    places = places.unflatten(2, (len(parts), heads, -1))  # (K,T,parts,H,E)
    for i, part in enumerate(parts):
        part = part.unflatten(0, (-1, heads))  # (K,H,nL,E)
        if bucket.packed is not None and not at_eot:
            part = part.index_select(2, bucket.packed)
        places[:, :, i].copy_(part.transpose(1, 2))


def _folded(
    runs: int, dims: Sequence[int | None], inputs: Sequence[torch.Tensor]
) -> list[torch.Tensor]:
    """Tensors (K,…) mapped over R runs at these dimensions, or common to all → (R·K,…)."""
    inputs = [
        x.expand(runs, *x.shape) if dim is None else x.movedim(dim, 0)
        for x, dim in zip(inputs, dims, strict=True)
    ]
    return [x.flatten(0, 1) for x in inputs]
