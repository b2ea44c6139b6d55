"""The fast path of texts that begin alike: the prefix once, packed suffixes that attend to it.

Tokens put into the prefix for all classes keep it shared. Tokens that differ per class, or stand
beyond it, cut it there, from their layer on: what followed the cut joins every suffix.
Shape letters: the package's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise
from typing import TYPE_CHECKING

import torch

from ..fused import recomputed
from ..packed import Packing, attend
from .block import Layer, layers_of
from .changes import (
    END,
    Change,
    NameShift,
    Read,
    Tokens,
    at_layer,
    kept,
    put,
    reads_tokens,
    shifts,
    tensors_of,
    with_tensors,
)
from .layout import PromptLayout

if TYPE_CHECKING:
    from .text import TextEncoder, TextState

# What one suffix token takes in a step, in widths per layer: for the backward pass two residuals,
# q, k and v with their padding, the four-fold hidden layer, attention weights and norms, and what
# the passes need beside them. And where a block has changes: no fused MLP, inputs kept for the
# weights' gradients. Rounded up from what benchmarks/token_memory.py finds resident.
_WIDTHS_PER_TOKEN = 15
_WIDTHS_PER_CHANGED_TOKEN = 39
# Without gradients nothing is kept, and chunks of this many tokens stay within the CPU's caches.
_TOKENS_PER_CHUNK = 2048


@dataclass(frozen=True, eq=False)
class _Inputs:
    """What a pass over the suffixes of some classes takes: every tensor that may have a gradient.

    keys_values: per layer k and v (K,H,P,W/H) of the prefix. moves: per layer what is done to every
    suffix, positions counted from its start. prefixes: the prefix (K,P,W) where it is read, by the
    read's name. tokens: (1|K,S,W) before the first layer; None: embedded here.
    """

    keys_values: list[tuple[torch.Tensor, torch.Tensor]]
    moves: dict[int, list[Tokens]]
    prefixes: dict[str, torch.Tensor]
    changes: list[Change]
    tokens: torch.Tensor | None

    def of_classes(self, layout: PromptLayout, first: int, last: int) -> _Inputs:
        """Those of the classes order[first:last]."""
        rows = layout.order[first:last]

        def mine(change: Tokens) -> Tokens:
            if change.vectors.shape[1] == 1:
                return change
            return replace(change, vectors=change.vectors.index_select(1, rows))

        moves = {i: [mine(change) for change in moves] for i, moves in self.moves.items()}
        tokens = self.tokens
        if tokens is not None:
            tokens = tokens[:, layout.suffix_tokens(first, last)]
        return replace(self, moves=moves, tokens=tokens)


def run_shared(
    encoder: TextEncoder,
    state: TextState,
    contexts: int,
    changes: Sequence[Change],
    reads: dict[str, Read],
    stop: int | None = None,
) -> list[torch.Tensor]:
    """From `state` to the features (K,C,D) and what is read, in the order of `reads`.

    changes: placed; their tokens' vectors (K|1,C|1,N,W).
    stop: the layer before which to stop; gives the prefix (K,P,W) and the suffixes (1|K,S,W), or
        at the tower's end the outputs (K,C,W) at EOT before the last norm.
    """
    layout = state.layout
    if stop is None:
        state = _row_pass(encoder, state, contexts, changes, reads)
    inputs, prefix = _prefix_pass(encoder, state, contexts, changes, reads, stop)
    outputs = []
    changed = any(not isinstance(change, NameShift) for change in inputs.changes)
    grown = sum(c.number for moves in inputs.moves.values() for c in moves if c.insert)
    chunks = chunks_of(encoder, layout, contexts, encoder.layers - state.layer, grown, changed)
    recompute = len(chunks) > 1 and torch.is_grad_enabled()
    for first, last in chunks:
        mine = inputs.of_classes(layout, first, last)
        call = partial(_suffix_pass, encoder, state, contexts, (first, last), reads, stop)
        if recompute:
            call = partial(_refilled, call, mine)
            outputs.append(recomputed(call, *tensors_of(mine)))
        else:
            outputs.append(call(mine))
    joined = [
        torch.cat(parts, dim=1) if len(parts) > 1 else parts[0]
        for parts in zip(*outputs, strict=True)
    ]
    if stop is not None and stop < encoder.layers:
        return [prefix, *joined]
    return [x.index_select(1, layout.inverse) for x in joined]


def _refilled(call, inputs: _Inputs, *values: torch.Tensor) -> tuple[torch.Tensor, ...]:
    return call(with_tensors(inputs, iter(values)))


# --- Both in one row ---------------------------------------------------------------------------


def _row_pass(
    encoder: TextEncoder,
    state: TextState,
    contexts: int,
    changes: Sequence[Change],
    reads: dict[str, Read],
) -> TextState:
    """The state before the first layer that can't go on in one row; `state` if none can.

    A layer can where launches are what takes time, all classes fit in memory at once, nothing is
    read below the next one, and tokens are put into the prefix alone, for all classes the same. The
    last layer can't: it computes less apart.
    """
    layout, layers = state.layout, encoder.layers
    inside = [c for c in changes if not isinstance(c, Tokens)]
    changed = any(not isinstance(change, NameShift) for change in inside)
    wanted = encoder.in_one_row
    if not (encoder.text_projection.is_cuda if wanted is None else wanted):
        return state
    assert state.prefix is not None
    places = contexts * len(layout.row(state.prefix.shape[1]).places)
    if places > _tokens_per_chunk(encoder, layers - state.layer, changed):
        return state
    blocks = layers_of(encoder.transformer.resblocks, inside)
    last = min([layers - 1, *(read.reaches(layers) for read in reads.values())])
    last = next((i for i in range(state.layer, last) if not _stay(changes, i, state)), last)
    if last <= state.layer:
        return state
    tokens = state.tokens
    if tokens is None:
        tokens = _embedded(encoder, layout, layout.suffix_tokens(0, len(layout)), inside)
    x = torch.cat([z.expand(contexts, -1, -1) for z in (state.prefix, tokens)], dim=1)
    length = x.shape[1] - tokens.shape[1]
    for i in range(state.layer, last):
        for change in at_layer(changes, i, Tokens):
            x = put(x, change, change.vectors[:, 0].expand(contexts, -1, -1))
            length = x.shape[1] - tokens.shape[1]
        x = blocks[i].in_row(x, layout.row(length))
    prefix, tokens = x.split([length, tokens.shape[1]], dim=1)
    return replace(state, layer=last, contexts=contexts, prefix=prefix, tokens=tokens)


def _stay(changes: Sequence[Change], layer: int, state: TextState) -> bool:
    """Whether what is put in before `layer` stays in the prefix, for all classes the same."""
    assert state.prefix is not None
    length = state.prefix.shape[1]
    for change in changes:
        if isinstance(change, Tokens) and change.layer <= layer:
            assert change.at is not None  # `placed` has seen to it
            end = change.at if change.insert else change.at + change.number
            if end > length or change.vectors.shape[1] > 1:
                return False
            length += change.number * change.insert
    return True


# --- The prefix -----------------------------------------------------------------------------------


def _prefix_pass(
    encoder: TextEncoder,
    state: TextState,
    contexts: int,
    changes: Sequence[Change],
    reads: dict[str, Read],
    stop: int | None,
) -> tuple[_Inputs, torch.Tensor]:
    """The prefix at every layer, and itself before the last."""
    layers = encoder.layers
    assert state.prefix is not None
    x = state.prefix.expand(contexts, -1, -1)
    inside: list[Change] = [c for c in changes if not isinstance(c, Tokens)]
    inputs = _Inputs([], {}, {}, inside, state.tokens)
    blocks = layers_of(encoder.transformer.resblocks, inside)
    last = layers if stop is None else stop

    def keep(layer: int) -> None:
        for name, read in reads.items():
            if read.at != END and read.reaches(layers) == layer:
                inputs.prefixes[name] = x

    for i in range(state.layer, last):
        keep(i)
        for change in at_layer(changes, i, Tokens):
            x = _in_prefix(x, change, inputs.moves.setdefault(i, []))
        needed = x.shape[1]
        if i == layers - 1:
            needed *= reads_tokens(reads, layers, layers)
        elif i + 1 < last and not reads_tokens(reads, i + 1, layers):
            needed = kept(changes, i + 1, needed)
        y, k, v = blocks[i].run(x, needed, causal=True)
        inputs.keys_values.append((k, v))
        if needed < x.shape[1]:
            y = torch.cat([y, x[:, needed:]], dim=1)  # places to be replaced
        x = y
    keep(layers)
    return inputs, x


def _in_prefix(x: torch.Tensor, change: Tokens, moves: list[Tokens]) -> torch.Tensor:
    """The prefix x (K,P,W) after `change`; what can't be done in it is left to the suffixes."""
    assert change.at is not None  # `placed` has seen to it
    length = x.shape[1]
    end = change.at if change.insert else change.at + change.number
    if end <= length and change.vectors.shape[1] == 1:
        return put(x, change, change.vectors[:, 0].expand(len(x), -1, -1))
    cut = min(change.at, length)
    if cut < length:
        moves.append(Tokens(change.layer, x[:, None, cut:], at=0, insert=True))
    moves.append(replace(change, at=change.at - cut))
    return x[:, :cut]


# --- The suffixes ---------------------------------------------------------------------------------


def chunks_of(
    encoder: TextEncoder,
    layout: PromptLayout,
    contexts: int,
    layers: int,
    grown: int = 0,
    changed: bool = False,
) -> list[tuple[int, int]]:
    """Split the classes, in the layout's order, into ranges that fit in memory.

    grown: tokens that come to every suffix on its way; changed: blocks have changes.
    One needs no recomputation; several are recomputed in the backward pass.
    """
    room = _tokens_per_chunk(encoder, layers, changed)
    bounds, used = [0], 0
    for c, length in enumerate(layout.lengths):
        tokens = contexts * (length + grown)
        if used and used + tokens > room:
            bounds.append(c)
            used = 0
        used += tokens
    return list(pairwise([*bounds, len(layout)]))


def _tokens_per_chunk(encoder: TextEncoder, layers: int, changed: bool) -> int:
    weight = encoder.text_projection
    if not torch.is_grad_enabled():
        return _TOKENS_PER_CHUNK * (1 if weight.device.type == "cpu" else 8)
    if encoder.memory_budget is None:
        encoder.memory_budget = _free_memory(weight.device) // 2
    widths = _WIDTHS_PER_CHANGED_TOKEN if changed else _WIDTHS_PER_TOKEN
    token = widths * encoder.width * max(1, layers) * weight.element_size()
    return max(1, int(encoder.memory_budget // (token * encoder.passes)))


def _suffix_pass(
    encoder: TextEncoder,
    state: TextState,
    contexts: int,
    classes: tuple[int, int],
    reads: dict[str, Read],
    stop: int | None,
    inputs: _Inputs,
) -> tuple[torch.Tensor, ...]:
    """The features (K,classes,D) of some classes and what is read; or the tokens at `stop`."""
    layout, layers = state.layout, encoder.layers
    blocks = layers_of(encoder.transformer.resblocks, inputs.changes)
    last = layers if stop is None else stop
    head = encoder.head(inputs.changes)
    x, extra, found = inputs.tokens, 0, {}
    if x is None:
        x = _embedded(encoder, layout, layout.suffix_tokens(*classes), inputs.changes)
    packing = layout.packing(*classes)

    def look(layer: int | None, x: torch.Tensor, at_eot: bool = False) -> None:
        for name, read in reads.items():
            if read.layer != layer:
                continue
            if read.at == END:
                y = x if at_eot else x.index_select(1, packing.eot)
            else:
                assert not isinstance(read.at, str)
                prefix = inputs.prefixes[name]
                prefix = head.norm(prefix) if layer is None else prefix
                y = _whole(x, prefix, packing, layout.lengths[-1] + extra)[:, :, read.at]
            y = y @ head.projection if read.projected else y
            found[name] = y.expand(contexts, *y.shape[1:])

    for i in range(state.layer, last):
        look(i, x)
        for change in inputs.moves.get(i, ()):
            x = _put_packed(x, change, packing)
            if change.insert:
                extra += change.number
                packing = layout.packing(*classes, extra)
        at_eot = i == layers - 1 and not reads_tokens(reads, layers, layers)
        x = _step(blocks[i], x, inputs.keys_values[i - state.layer], packing, at_eot)
    if stop is not None:
        return (x,)
    look(layers, x, at_eot)
    y = head.norm(x)
    look(None, y, at_eot)
    features = (y if at_eot else y.index_select(1, packing.eot)) @ head.projection
    return features, *(found[name] for name in reads)


def _step(
    block: Layer,
    x: torch.Tensor,
    prefix: tuple[torch.Tensor, torch.Tensor],
    packing: Packing,
    at_eot: bool,
) -> torch.Tensor:
    """One block over packed tokens x (1|K,S,W), or its outputs (K,C,W) at EOT alone.

    prefix: its k and v there.
    """
    y = block.norm("ln_1", x)
    kv = block.project(y, slice(1, 3))
    if at_eot:
        x, y = (z.index_select(1, packing.eot) for z in (x, y))
    q = block.project(y, slice(0, 1))
    return block.finish(x, y, attend(q, kv, *prefix, packing))


def _embedded(
    encoder: TextEncoder, layout: PromptLayout, tokens: slice, changes: Sequence[Change]
) -> torch.Tensor:
    """The suffixes' tokens (1|K,S,W): the same for all contexts unless their shifts differ."""
    x = encoder.token_embedding(layout.suffix_ids[tokens]).to(encoder.dtype)
    positions = encoder.positional_embedding[layout.suffix_positions[tokens]]
    x = (x + positions.to(encoder.dtype)).unsqueeze(0)
    for shift in shifts(changes, layout.suffix_own[tokens]):
        x = x + shift.to(encoder.dtype)
    return x


def _put_packed(x: torch.Tensor, change: Tokens, packing: Packing) -> torch.Tensor:
    """`change`, its position counted from every suffix's start, done to packed tokens x (K,S,W)."""
    n, vectors = change.number, change.vectors
    assert change.at is not None  # `placed` has seen to it
    contexts, classes = max(len(x), len(vectors)), len(packing.lengths)
    vectors = vectors.expand(contexts, classes, -1, -1).flatten(1, 2)
    if change.keep:
        vectors = vectors + change.keep * x.index_select(1, packing.places(change.at, n))
    both = torch.cat([x.expand(contexts, -1, -1), vectors], dim=1)
    return both.index_select(1, packing.splice(change.at, n, change.insert))


def _whole(x: torch.Tensor, prefix: torch.Tensor, packing: Packing, longest: int) -> torch.Tensor:
    """Prefix (K,P,W) and packed suffixes x (1|K,S,W) → (K,classes,P+longest,W), zeros after EOT."""
    contexts, before, width = prefix.shape
    parts = [prefix, x.expand(contexts, -1, -1), x.new_zeros(contexts, 1, width)]
    index = packing.whole(before, before + longest)
    return torch.cat(parts, dim=1).index_select(1, index).unflatten(1, (-1, before + longest))


def _free_memory(device: torch.device) -> int:
    """Bytes that can be allocated on `device` now."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    try:
        with open("/proc/meminfo") as file:
            fields = dict(line.split(":", 1) for line in file)
        return int(fields["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError):
        return 4 << 30  # not a Linux: assume a small machine
