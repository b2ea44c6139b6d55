"""The text tower, fed with context vectors and changes. Shape letters: the package's."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
import torch.nn.functional as F
from torch import nn

from dassl.utils import UserError

from ..clip import _tokenizer
from ..model import CLIP
from ..simple_tokenizer import START
from .block import Head, Layer, head_of, heads_apart, heads_joined, layers_of, plain_block
from .changes import (
    END,
    FEATURES,
    Change,
    NameShift,
    Read,
    Reads,
    Tokens,
    at_layer,
    check,
    first_layer,
    placed,
    put,
    reads_tokens,
    shifts,
)
from .layout import PromptLayout
from .shared import run_shared

_WORD = re.compile("([a-z]+)</w>")  # a token that ends one, and is all of it


@dataclass(frozen=True, eq=False)
class TextState:
    """The tokens of every class before a layer.

    prefix: (K,P,W) what all classes begin with; None: nothing is shared.
    tokens: (1|K,S,W) packed suffixes in the layout's order, None before they are embedded; without
        a prefix (KC,L,W) whole sequences; after the last block (KC,1,W) at EOT.
    side_by_side: whether results keep their dimension K.
    """

    layout: PromptLayout
    layer: int
    contexts: int
    prefix: torch.Tensor | None
    tokens: torch.Tensor | None
    side_by_side: bool = False

    def select(self, classes: torch.Tensor) -> TextState:
        """The state of these classes (n,), by index, in this order."""
        layout, tokens = self.layout.select(classes), self.tokens
        if tokens is not None and self.prefix is None:
            tokens = tokens.unflatten(0, (self.contexts, -1)).index_select(1, classes).flatten(0, 1)
        elif tokens is not None:
            starts = self.layout.packing(0, len(self.layout)).starts
            places = self.layout.inverse[classes[layout.order]].tolist()
            index = [starts[c] + i for c in places for i in range(self.layout.lengths[c])]
            tokens = tokens[:, torch.tensor(index, device=tokens.device)]
        return replace(self, layout=layout, tokens=tokens)


class TextEncoder(nn.Module):
    """CLIP's text tower, fed with context vectors; shares the weights of `clip_model`."""

    # Whether the fast path takes prefix and suffixes as one row: fewer kernels, more padding. None:
    # on a GPU, where a step waits for launches.
    in_one_row: bool | None = None

    def __init__(self, clip_model: CLIP, fast: bool = True) -> None:
        super().__init__()
        self.transformer = clip_model.transformer
        self.token_embedding = clip_model.token_embedding
        self.positional_embedding = clip_model.positional_embedding
        self.ln_final = clip_model.ln_final
        self.text_projection = clip_model.text_projection
        self.fast = fast
        # Whether the plain path goes through what stands after the longest text, too.
        self.padded = True
        # Bytes that activations kept for the backward pass may take; None: half of what is free.
        self.memory_budget: int | None = None
        # Passes that go on at once, mapped by vmap: they share the memory.
        self.passes = 1

    @property
    def dtype(self) -> torch.dtype:
        """What the tower computes in."""
        return self.text_projection.dtype

    @property
    def width(self) -> int:
        """W, d_t in the methods."""
        return self.token_embedding.embedding_dim

    @property
    def layers(self) -> int:
        """How many blocks the tower has."""
        return len(self.transformer.resblocks)

    @property
    def context_length(self) -> int:
        """The most tokens of a text: 77 in released models."""
        return len(self.positional_embedding)

    @property
    def vocabulary(self) -> int:
        """How many token ids stand for text: 0 to it − 1; SOS and EOT are the two behind."""
        return _tokenizer.encoder[START]

    def layout(
        self,
        classnames: Sequence[str],
        n_ctx: int,
        position: str = "end",
        words: Sequence[int] = (),
        tail: str = ".",
    ) -> PromptLayout:
        """The prompt layout of these classes for this tower, on its device.

        words: token ids that stand after the context in every prompt; tail: what follows the name.
        """
        layout = PromptLayout(classnames, n_ctx, position, self.context_length, words, tail)
        return layout.to(self.positional_embedding.device)

    def token_ids(self, text: str) -> list[int]:
        """The token ids of some words, without SOS and EOT."""
        return _tokenizer.encode(text)

    def decode(self, ids: Sequence[int]) -> str:
        """The text of token ids, without a space at its end."""
        return _tokenizer.decode(ids).strip()

    @torch.no_grad()
    def word_ids(self) -> dict[str, int]:
        """The token id of each word of letters a to z that is one token with an embedding not zero.

        A text of such words, with spaces between them, has their ids.
        """
        known = self.token_embedding.weight.any(dim=1).tolist()
        found = ((_WORD.fullmatch(token), i) for token, i in _tokenizer.encoder.items())
        return {match[1]: i for match, i in found if match and known[i]}

    def words(self) -> list[str]:
        """The words of `word_ids`."""
        return list(self.word_ids())

    @torch.no_grad()
    def embed(self, ids: Sequence[int]) -> torch.Tensor:
        """The (n,W) fp32 embeddings of token ids: initial context vectors."""
        device = self.positional_embedding.device
        tokens = torch.tensor(ids, dtype=torch.long, device=device)
        return self.token_embedding(tokens).to(self.dtype).float()

    @torch.no_grad()
    def encode(self, texts: Sequence[str]) -> torch.Tensor:
        """Finished sentences → (len(texts),D) features, not normalized, without gradient."""
        layout = PromptLayout.of_texts(texts, self.context_length)
        return self(layout.to(self.positional_embedding.device))

    def first_layer(self, changes: Sequence[Change]) -> int:
        """The first layer that a change reaches; `layers` where none reaches a block."""
        return first_layer(changes, self.layers)

    def head(self, changes: Sequence[Change]) -> Head:
        """What follows the blocks."""
        parts = ("ln_final", self.ln_final), ("text_projection", self.text_projection)
        return head_of(*parts, changes, self.layers)

    def forward(
        self,
        layout: PromptLayout,
        ctx: torch.Tensor | None = None,
        deep: torch.Tensor | None = None,
        changes: Sequence[Change] = (),
        reads: Reads | None = None,
    ) -> torch.Tensor | dict[str, torch.Tensor]:
        """Text features of every class, not normalized.

        Args:
            layout: of C classes.
            ctx: (M,W) one context; (C,M,W) one per class; (K,1,M,W) K contexts side by side.
            deep: (J−1,N,W), short for `Tokens` in place of positions 1…N before layers 1…J−1; or
                (K,J−1,N,W) with K contexts.
            changes: what else the tower is to do inside (changes.py).
            reads: what else is given back, by name.

        Returns:
            (C,D); (K,C,D) for K contexts. With `reads` a dictionary: that as "features", and what
            was read.

        Raises:
            UserError: a change or read that this tower hasn't the place for.
        """
        if deep is not None:
            vectors = deep.unsqueeze(2).unbind(1) if deep.dim() == 4 else deep.unbind(0)
            changes = [*(Tokens(1 + i, v) for i, v in enumerate(vectors)), *changes]
        state = self._start(layout, ctx)
        return self.above(state, changes, reads)

    @torch.no_grad()
    def below(self, layout: PromptLayout, layer: int, ctx: torch.Tensor | None = None) -> TextState:
        """What stands before `layer` without any change, to be kept while nothing below trains.

        layer = `layers`: after the last block, at EOT.
        """
        if not 0 <= layer <= self.layers:
            raise UserError(f"the text tower has layers 0 to {self.layers}, not {layer}")
        state = self._start(layout, ctx)
        if layer == 0:
            return state
        run = self._run_whole if state.prefix is None else partial(run_shared, self)
        *prefix, tokens = run(state, state.contexts, (), {}, layer)
        if state.prefix is not None and layer == self.layers:
            tokens = tokens.flatten(0, 1).unsqueeze(1)
        return replace(state, layer=layer, prefix=prefix[0] if prefix else None, tokens=tokens)

    def above(
        self, state: TextState, changes: Sequence[Change] = (), reads: Reads | None = None
    ) -> torch.Tensor | dict[str, torch.Tensor]:
        """From what `below` gave to the features: as `forward`, for changes from that layer on.

        Raises:
            UserError: also a change or read below that layer.
        """
        names = dict(reads or {})
        check(changes, names, self.layers, state.layer)
        side_by_side = state.side_by_side or any(
            isinstance(change, Tokens | NameShift) and change.vectors.dim() == 4
            for change in changes
        )
        changes = [self._per_class(change, len(state.layout)) for change in changes]
        contexts = _contexts(state, changes)
        changes = placed(changes, state.layout.shortest - 1)
        _check_reads(state, changes, names, self.layers)
        run = self._run_whole if state.prefix is None else partial(run_shared, self)
        features, *found = run(state, contexts, changes, names)
        results = {FEATURES: features, **dict(zip(names, found, strict=True))}
        if not side_by_side:
            results = {name: x[0] for name, x in results.items()}
        return results if reads is not None else results[FEATURES]

    def _per_class(self, change: Change, classes: int) -> Change:
        """Tokens' and shifts' vectors with all their dimensions: (K|1,C|1,N,W)."""
        if not isinstance(change, Tokens | NameShift):
            return change
        vectors = change.vectors.to(self.dtype)
        while vectors.dim() < 4:
            vectors = vectors.unsqueeze(0)
        wrong = vectors.shape[1] not in ((1,) if isinstance(change, NameShift) else (1, classes))
        if wrong or vectors.shape[-1] != self.width or vectors.dim() > 4:
            raise UserError(
                f"{type(change).__name__} of shape {tuple(change.vectors.shape)} for {classes} "
                f"classes and a tower of width {self.width}"
            )
        if isinstance(change, Tokens) and change.at is None:
            raise UserError("texts differ in length: say at which position tokens are put in")
        return replace(change, vectors=vectors)

    def _start(self, layout: PromptLayout, ctx: torch.Tensor | None) -> TextState:
        """The prompts' embeddings."""
        if ctx is None:
            ctx = self.positional_embedding.new_zeros(0, self.width)
        side_by_side = ctx.dim() == 4
        ctx = ctx.to(self.dtype)
        ctx = ctx if side_by_side else ctx.unsqueeze(0)
        if ctx.dim() == 3:
            ctx = ctx.unsqueeze(1)  # (K,1|C,M,W)
        state = TextState(layout, 0, ctx.shape[0], None, None, side_by_side)
        if self.fast and layout.prefix_length and ctx.shape[1] == 1:
            return replace(state, prefix=self._prefix(layout, ctx[:, 0]))
        length = layout.longest if self.fast or not self.padded else layout.context_length
        return replace(state, tokens=self._prompts(layout, ctx, length).flatten(0, 1))

    def _prefix(self, layout: PromptLayout, ctx: torch.Tensor) -> torch.Tensor:
        """(K,P,W) input embeddings of [SOS][context][words]."""
        fixed = self.token_embedding(layout.tokens[:1, : layout.prefix_length]).to(self.dtype)
        fixed = fixed.expand(ctx.shape[0], -1, -1)
        x = torch.cat([fixed[:, :1], ctx, fixed[:, 1 + layout.n_ctx :]], dim=1)
        return x + self.positional_embedding[: x.shape[1]].to(self.dtype)

    def _prompts(self, layout: PromptLayout, ctx: torch.Tensor, length: int) -> torch.Tensor:
        """(K,C,length,W) input embeddings with the context in place, positions added."""
        x = self.token_embedding(layout.tokens[:, :length]).to(self.dtype)  # (C,L,W)
        if layout.n_ctx:
            slots = layout.slots[:, :length]
            rows = ctx.expand(-1, len(layout), -1, -1)  # (K,C,M,W)
            index = slots.clamp(min=0)[None, :, :, None].expand(ctx.shape[0], -1, -1, x.shape[-1])
            x = torch.where((slots < 0)[None, :, :, None], x, rows.gather(2, index))
        else:
            x = x.expand(ctx.shape[0], -1, -1, -1)
        return x + self.positional_embedding[:length].to(self.dtype)

    # Whole sequences: the plain path; or no token after EOT, and the last layer at EOT alone.

    def _run_whole(
        self,
        state: TextState,
        contexts: int,
        changes: Sequence[Change],
        reads: dict[str, Read],
        stop: int | None = None,
    ) -> list[torch.Tensor]:
        """As `run_shared`; `stop` gives the tokens (KC,L,W), at the tower's end (KC,1,W)."""
        layout, layers, head = state.layout, self.layers, self.head(changes)
        last = layers if stop is None else stop
        assert state.tokens is not None
        x = state.tokens.unflatten(0, (-1, len(layout)))
        if state.layer == 0:
            x = sum((s.to(x.dtype) for s in shifts(changes, layout.own[:, : x.shape[2]])), x)
        x = x.expand(contexts, -1, -1, -1).flatten(0, 1)  # (KC,L,W)
        eot = layout.eot.repeat(contexts)
        extra, found, everywhere = 0, {}, reads_tokens(reads, layers, layers)
        at_eot = state.layer == layers

        def look(layer: int | None, x: torch.Tensor) -> None:
            for name, read in reads.items():
                if read.layer == layer:
                    y = x[:, 0] if at_eot else _read(x, read, eot, layout.longest + extra)
                    y = y @ head.projection if read.projected else y
                    found[name] = y.unflatten(0, (contexts, -1))

        blocks = layers_of(self.transformer.resblocks, changes)
        for i in range(state.layer, last):
            look(i, x)
            for change in at_layer(changes, i, Tokens):
                vectors = change.vectors.expand(contexts, len(layout), -1, -1)
                x = put(x, change, vectors.flatten(0, 1))
                if change.insert:
                    extra, eot = extra + change.number, eot + change.number
            if not self.fast:
                x = plain_block(blocks[i].block, blocks[i].changes, x, causal=True)
            elif i < layers - 1 or everywhere:
                x = blocks[i].run(x, causal=True)[0]
            else:
                x, at_eot = _at_eot(blocks[i], x, eot), True
        if last == layers and not (at_eot or everywhere):
            x, at_eot = _read(x, Read(), eot, 0).unsqueeze(1), True
        if stop is not None:
            return [x]
        look(layers, x)
        y = head.norm(x)
        look(None, y)
        y = y[:, 0] if at_eot else _read(y, Read(), eot, 0)
        features = (y @ head.projection).unflatten(0, (contexts, -1))
        return [features, *(found[name] for name in reads)]


def _read(x: torch.Tensor, read: Read, eot: torch.Tensor, longest: int) -> torch.Tensor:
    """What `read` asks of whole sequences x (KC,L,W) that end at eot (KC,)."""
    if read.at == END:
        return x[torch.arange(x.shape[0], device=x.device), eot]
    assert not isinstance(read.at, str)
    real = torch.arange(longest, device=x.device) <= eot[:, None]
    return torch.where(real[..., None], x[:, :longest], 0)[:, read.at]


def _at_eot(block: Layer, x: torch.Tensor, eot: torch.Tensor) -> torch.Tensor:
    """The last block's outputs (KC,1,W) at EOT alone."""
    rows = torch.arange(len(x), device=x.device)
    y = block.norm("ln_1", x)
    own = y[rows, eot].unsqueeze(1)
    q = heads_apart(block.project(own, slice(0, 1)), block.heads)
    k, v = block.keys_values(y)
    visible = torch.arange(x.shape[1], device=x.device) <= eot[:, None]  # (KC,L)
    mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=visible[:, None, None])
    return block.finish(x[rows, eot].unsqueeze(1), own, heads_joined(mixed))


def _contexts(state: TextState, changes: Sequence[Change]) -> int:
    """K, how many runs go side by side."""
    numbers = [c.vectors.shape[0] for c in changes if isinstance(c, Tokens | NameShift)]
    contexts = max([state.contexts, *numbers])
    if any(number not in (1, contexts) for number in [state.contexts, *numbers]):
        raise UserError(f"contexts side by side: {state.contexts} given, changes for {numbers}")
    return contexts


def _check_reads(
    state: TextState, changes: Sequence[Change], reads: dict[str, Read], layers: int
) -> None:
    for name, read in reads.items():
        layer = read.reaches(layers)
        if isinstance(read.at, str):  # END
            continue
        if state.layer == layers:
            raise UserError(f"read {name!r}: behind the last block only {END!r} is kept")
        inserted = [c for c in changes if isinstance(c, Tokens) and c.insert and c.layer < layer]
        longest = state.layout.longest + sum(c.number for c in inserted)
        numbers = (read.at.start, read.at.stop) if isinstance(read.at, slice) else (read.at,)
        if any(n is not None and not 0 <= n <= longest for n in numbers) or read.at == longest:
            raise UserError(f"read {name!r}: texts have positions 0 to {longest - 1} there")
