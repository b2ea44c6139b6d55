"""The text tower, fed with context vectors. Shape letters: the package's."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import nn

from ..clip import _tokenizer
from ..fused import recomputed
from ..model import CLIP
from ..packed import attend
from .block import finish, heads_apart, heads_joined, per_layer, project, replace, run_block
from .layout import PromptLayout

# Activations that one suffix token leaves for the backward pass, in widths per layer: two
# residuals, q, k and v with their padding, the four-fold hidden layer, attention weights and norms.
_WIDTHS_PER_TOKEN = 12
# Without gradients nothing is kept, and pieces of this many tokens stay within the CPU's caches.
_TOKENS_PER_PIECE = 2048


class TextEncoder(nn.Module):
    """CLIP's text tower, fed with context vectors; shares the weights of `clip_model`."""

    def __init__(self, clip_model: CLIP, fast: bool = True) -> None:
        super().__init__()
        self.transformer = clip_model.transformer
        self.token_embedding = clip_model.token_embedding
        self.positional_embedding = clip_model.positional_embedding
        self.ln_final = clip_model.ln_final
        self.text_projection = clip_model.text_projection
        self.fast = fast
        # Bytes that activations kept for the backward pass may take; None: half of what is free.
        self.memory_budget: int | None = None
        # Passes that go on at once, mapped by vmap: they share the memory.
        self.passes = 1

    @property
    def dtype(self) -> torch.dtype:
        return self.text_projection.dtype

    @property
    def width(self) -> int:
        return self.token_embedding.embedding_dim

    @property
    def layers(self) -> int:
        return len(self.transformer.resblocks)

    @property
    def context_length(self) -> int:
        return len(self.positional_embedding)

    def layout(
        self,
        classnames: Sequence[str],
        n_ctx: int,
        position: str = "end",
        words: Sequence[int] = (),
    ) -> PromptLayout:
        """The prompt layout of these classes for this tower, on its device.

        words: token ids that stand after the context in every prompt.
        """
        layout = PromptLayout(classnames, n_ctx, position, self.context_length, words)
        return layout.to(self.positional_embedding.device)

    def token_ids(self, text: str) -> list[int]:
        """The token ids of some words, without SOS and EOT."""
        return _tokenizer().encode(text)

    @torch.no_grad()
    def embed(self, ids: Sequence[int]) -> torch.Tensor:
        """The (n,W) fp32 embeddings of token ids: initial context vectors."""
        ids = torch.tensor(ids, dtype=torch.long, device=self.positional_embedding.device)
        return self.token_embedding(ids).to(self.dtype).float()

    @torch.no_grad()
    def encode(self, texts: Sequence[str]) -> torch.Tensor:
        """Finished sentences → (len(texts),D) features, not normalised, without gradient."""
        layout = PromptLayout.of_texts(texts, self.context_length)
        return self(layout.to(self.positional_embedding.device))

    def forward(
        self,
        layout: PromptLayout,
        ctx: torch.Tensor | None = None,
        deep: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Text features of every class, not normalised.

        Args:
            layout: of C classes.
            ctx: (M,W) one context; (C,M,W) one per class; (K,1,M,W) K contexts side by side.
            deep: (J−1,N,W), the vectors that replace positions 1…N before layers 1…J−1; or
                (K,J−1,N,W) with K contexts.

        Returns:
            (C,D); (K,C,D) for K contexts.
        """
        if ctx is None:
            ctx = self.positional_embedding.new_zeros(0, self.width)
        side_by_side = ctx.dim() == 4
        ctx = ctx.to(self.dtype)
        ctx = ctx if side_by_side else ctx.unsqueeze(0)
        if ctx.dim() == 3:
            ctx = ctx.unsqueeze(1)  # (K,1|C,M,W)
        deep = [] if deep is None else per_layer(deep.to(self.dtype))
        if not self.fast:
            features = self._plain(layout, ctx, deep)
        elif layout.prefix_length and ctx.shape[1] == 1:
            features = self._shared(layout, ctx[:, 0], deep)
        else:
            features = self._truncated(layout, ctx, deep)
        return features if side_by_side else features[0]

    # The plain path.

    def _prompts(self, layout: PromptLayout, ctx: torch.Tensor, length: int) -> torch.Tensor:
        """(K,C,length,W) input embeddings with the context in place, positions added."""
        x = self.token_embedding(layout.tokens[:, :length]).to(self.dtype)  # (C,L,W)
        if layout.n_ctx:
            slots = layout.slots[:, :length]
            rows = ctx.expand(-1, len(layout), -1, -1)  # (K,C,M,W)
            index = slots.clamp(min=0)[None, :, :, None].expand(len(ctx), -1, -1, x.shape[-1])
            x = torch.where((slots < 0)[None, :, :, None], x, rows.gather(2, index))
        else:
            x = x.expand(len(ctx), -1, -1, -1)
        return x + self.positional_embedding[:length].to(self.dtype)

    def _plain(self, layout: PromptLayout, ctx: torch.Tensor, deep: list[torch.Tensor]):
        x = self._prompts(layout, ctx, layout.context_length).flatten(0, 1)  # (KC,77,W)
        x = x.transpose(0, 1)
        for i, block in enumerate(self.transformer.resblocks):
            if 0 < i <= len(deep):
                vectors = deep[i - 1].repeat_interleave(x.shape[1] // len(deep[i - 1]), dim=0)
                x = torch.cat([x[:1], vectors.transpose(0, 1), x[1 + vectors.shape[1] :]])
            x = block(x)
        x = self.ln_final(x.transpose(0, 1)).unflatten(0, (len(ctx), len(layout)))
        classes = torch.arange(len(layout), device=x.device)
        return x[:, classes, layout.eot] @ self.text_projection

    # The fast path without a shared prefix: no token after EOT, the last layer at EOT alone.

    def _truncated(self, layout: PromptLayout, ctx: torch.Tensor, deep: list[torch.Tensor]):
        length = layout.prefix_length + layout.lengths[-1]
        x = self._prompts(layout, ctx, length).flatten(0, 1)  # (KC,L,W)
        blocks = self.transformer.resblocks
        for i, block in enumerate(blocks[:-1]):
            x = run_block(block, replace(x, deep, i), causal=True)[0]
        x = replace(x, deep, len(blocks) - 1)
        eot = layout.eot.repeat(len(ctx))
        rows = torch.arange(len(x), device=x.device)
        block, heads = blocks[-1], blocks[-1].attn.num_heads
        y = block.ln_1(x)
        q = heads_apart(project(block, y[rows, eot].unsqueeze(1), slice(0, 1)), heads)
        k, v = (heads_apart(z, heads) for z in project(block, y, slice(1, 3)).chunk(2, dim=-1))
        visible = torch.arange(length, device=x.device) <= eot[:, None]  # (KC,L)
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=visible[:, None, None])
        x = finish(block, x[rows, eot].unsqueeze(1), heads_joined(mixed))
        return (self.ln_final(x[:, 0]) @ self.text_projection).unflatten(0, (len(ctx), len(layout)))

    # The fast path with a shared prefix.

    def _shared(self, layout: PromptLayout, ctx: torch.Tensor, deep: list[torch.Tensor]):
        """ctx: (K,M,W) → (K,C,D)."""
        prefix = self._prefix(layout, ctx, deep)
        pieces = self._pieces(layout, len(ctx), torch.is_grad_enabled())
        recompute = len(pieces) > 1 and torch.is_grad_enabled()
        features = []
        for first, last in pieces:
            call = partial(self._suffixes, layout, first, last)
            features.append(recomputed(call, *prefix) if recompute else call(*prefix))
        features = features[0] if len(features) == 1 else torch.cat(features, dim=1)
        return features.index_select(1, layout.inverse)

    def _prefix(self, layout: PromptLayout, ctx: torch.Tensor, deep: list[torch.Tensor]):
        """Keys and values (K,H,P,W/H) of [SOS][context][words] at every layer, k and v in turn."""
        fixed = self.token_embedding(layout.tokens[:1, : layout.prefix_length]).to(self.dtype)
        fixed = fixed.expand(len(ctx), -1, -1)
        x = torch.cat([fixed[:, :1], ctx, fixed[:, 1 + layout.n_ctx :]], dim=1)
        x = x + self.positional_embedding[: x.shape[1]].to(self.dtype)
        keys_values = []
        blocks = self.transformer.resblocks
        for i, block in enumerate(blocks):
            x = replace(x, deep, i)
            if i == len(blocks) - 1:
                needed = 0
            elif i < len(deep) and x.shape[1] == 1 + deep[i].shape[-2]:
                needed = 1  # the next layer replaces everything but SOS
            else:
                needed = x.shape[1]
            y, k, v = run_block(block, x, needed, causal=True)
            keys_values += [k, v]
            if needed < x.shape[1]:
                y = torch.cat([y, x[:, needed:]], dim=1)  # places to be replaced
            x = y
        return keys_values

    def _pieces(self, layout: PromptLayout, contexts: int, grad: bool) -> list[tuple[int, int]]:
        """Split the classes, in the layout's order, into ranges that fit in memory.

        One needs no recomputation; several are recomputed in the backward pass.
        """
        room = self._tokens_per_piece(grad)
        bounds, used = [0], 0
        for c, length in enumerate(layout.lengths):
            if used and used + contexts * length > room:
                bounds.append(c)
                used = 0
            used += contexts * length
        return list(pairwise([*bounds, len(layout)]))

    def _tokens_per_piece(self, grad: bool) -> int:
        weight = self.text_projection
        if not grad:
            return _TOKENS_PER_PIECE * (1 if weight.device.type == "cpu" else 8)
        if self.memory_budget is None:
            self.memory_budget = _free_memory(weight.device) // 2
        layers = len(self.transformer.resblocks)
        token = _WIDTHS_PER_TOKEN * self.width * layers * weight.element_size()
        return max(1, self.memory_budget // (token * self.passes))

    def _suffixes(
        self, layout: PromptLayout, first: int, last: int, *prefix: torch.Tensor
    ) -> torch.Tensor:
        """The suffix pass of some classes → (K,classes,D). prefix: each layer's k and v in turn."""
        packing = layout.packing(first, last)
        # The same for all contexts before the first layer.
        ids, positions = layout.suffixes(first, last)
        x = self.token_embedding(ids).to(self.dtype)
        x = (x + self.positional_embedding[positions].to(self.dtype)).unsqueeze(0)  # (1,S,W)
        blocks = self.transformer.resblocks
        for i, block in enumerate(blocks):
            y = block.ln_1(x)
            kv = project(block, y, slice(1, 3))
            if i == len(blocks) - 1:
                x, y = (z.index_select(1, packing.eot) for z in (x, y))
            q = project(block, y, slice(0, 1))
            x = finish(block, x, attend(q, kv, *prefix[2 * i : 2 * i + 2], packing))
        return self.ln_final(x) @ self.text_projection


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
