"""CLIP's encoders with prompts: the text tower takes context vectors, the image tower prompts.

This is the only module that knows how to be fast. Each encoder has two paths with the same numbers:

plain  C × 77 tokens through every layer, as CLIP's own `encode_text`; the oracle of tests and
       benchmarks.
fast   The text tower is causal and read at EOT. So (1) nothing after EOT is computed; (2) the
       prefix [SOS][context][words] is the same for every class at every layer (deep prompts
       included) and is computed once, each class adding only its own suffix, which attends to the
       prefix' keys and values; (3) suffixes lie packed side by side, without padding; (4) the last
       layer is computed at EOT (text) or at the class token (image) alone; (5) the frozen weights
       need no gradients, so that a block keeps less for its backward pass, and on a CPU the faster
       library computes their products (fused.py).
       Contexts that differ per class, or names before or amid the context, share no prefix: there
       the fast path is (1), (4) and the MLP of (5).

Letters in shape comments: B images; K contexts side by side (the images of a batch when each has
its own); C classes; M context tokens; P prefix tokens; S suffix tokens of all classes;
L tokens; N prompts per layer; J prompted layers; W tower width; D embedding width; H heads.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import nn

from dassl.utils import UserError

from .clip import _tokenizer
from .fused import Packing, attend, linear, mlp, recomputed
from .model import CLIP, ResidualAttentionBlock, VisionTransformer
from .simple_tokenizer import END, START

# Activations that one suffix token leaves for the backward pass, in widths per layer: two
# residuals, q, k and v with their padding, the four-fold hidden layer, attention weights and norms.
_WIDTHS_PER_TOKEN = 12
# Without gradients nothing is kept, and pieces of this many tokens or images (at least one for each
# thread) stay within the CPU's caches.
_TOKENS_PER_PIECE = 2048
_IMAGES_PER_PIECE = 4


class PromptLayout(nn.Module):
    """Where context vectors, frozen words and class names stand in the prompts of C classes.

    `position` "end": [SOS][context][words][name][.][EOT]; "middle": the name between the two halves
    of the context; "front": the name before it. `words` are fixed text, the same for all classes:
    what is left of a context's initial words where it has fewer vectors.

    Raises:
        UserError: unknown position, no classes, or a prompt longer than the tower's positions.
    """

    def __init__(
        self,
        classnames: Sequence[str],
        n_ctx: int,
        position: str = "end",
        context_length: int = 77,
        words: Sequence[int] = (),
    ) -> None:
        super().__init__()
        names = [name.replace("_", " ") for name in classnames]
        tokenizer = _tokenizer()
        prompts = []
        for name in names:
            ids = tokenizer.encode(f"{name}.")
            length = len(tokenizer.encode(name))
            prompts.append(_arrange(ids[:length], ids[length:], n_ctx, position, words))
        prefix = 1 + n_ctx + len(words) if position == "end" else 0
        self._set(prompts, n_ctx, context_length, names, prefix)

    @classmethod
    def of_texts(cls, texts: Sequence[str], context_length: int = 77) -> PromptLayout:
        """The layout of finished sentences: no context, only [SOS] shared."""
        layout = cls.__new__(cls)
        nn.Module.__init__(layout)
        prompts = [_tokenizer().encode(text) for text in texts]
        layout._set(prompts, 0, context_length, texts, prefix=1)
        return layout

    def _set(
        self,
        prompts: list[list[int]],
        n_ctx: int,
        context_length: int,
        names: Sequence[str],
        prefix: int,
    ) -> None:
        """prompts: token ids without SOS and EOT; −1−m stands for context vector m.

        prefix: how many tokens all prompts begin with, SOS among them; 0: none to be shared.
        """
        if not prompts:
            raise UserError("no classes to write prompts for")
        encoder = _tokenizer().encoder
        prompts = [[encoder[START], *ids, encoder[END]] for ids in prompts]
        longest = max(range(len(prompts)), key=lambda c: len(prompts[c]))
        if len(prompts[longest]) > context_length:
            raise UserError(
                f"the prompt of class {names[longest]!r} has {len(prompts[longest])} tokens with "
                f"{n_ctx} for the context, the text tower takes {context_length}; "
                "shorten the name or the context"
            )
        self.n_ctx = n_ctx
        self.context_length = context_length
        full = torch.zeros(len(prompts), context_length, dtype=torch.long)
        for row, ids in zip(full, prompts, strict=True):
            row[: len(ids)] = torch.tensor(ids)
        # Not in checkpoints: bound to the class names of this run.
        self.register_buffer("tokens", full.clamp(min=0), persistent=False)  # (C,77)
        slots = (-1 - full).clamp(min=-1)
        self.register_buffer("slots", slots, persistent=False)  # (C,77) context vector, or −1
        eot = torch.tensor([len(ids) - 1 for ids in prompts])
        self.register_buffer("eot", eot, persistent=False)  # (C,)

        # The fast path's order: by length, so that similar lengths lie side by side.
        self.prefix_length = prefix
        order = torch.argsort(eot, stable=True)
        self.lengths: list[int] = (eot[order] + 1 - self.prefix_length).tolist()
        self.register_buffer("order", order, persistent=False)
        self.register_buffer("inverse", torch.argsort(order), persistent=False)
        place = torch.arange(context_length)
        suffix = (place >= self.prefix_length) & (place <= eot[order, None])  # (C,77)
        self.register_buffer("suffix_ids", self.tokens[order][suffix], persistent=False)
        self.register_buffer("suffix_positions", suffix.nonzero()[:, 1], persistent=False)
        self._packings: dict[tuple, Packing] = {}

    def __len__(self) -> int:
        return len(self.tokens)

    def suffixes(self, first: int, last: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Token ids and positions (S,) of the suffixes of the classes order[first:last]."""
        start = sum(self.lengths[:first])
        tokens = slice(start, start + sum(self.lengths[first:last]))
        return self.suffix_ids[tokens], self.suffix_positions[tokens]

    def packing(self, first: int, last: int) -> Packing:
        """How the suffixes of the classes order[first:last] lie side by side."""
        key = (first, last, self.order.device)
        if key not in self._packings:
            self._packings[key] = Packing(self.lengths[first:last], self.order.device)
        return self._packings[key]


def _arrange(
    name: list[int], rest: list[int], n_ctx: int, position: str, words: Sequence[int]
) -> list[int]:
    """Token ids of one prompt with the context's places marked (−1−m for vector m)."""
    context = [*(-1 - m for m in range(n_ctx)), *words]
    half = n_ctx // 2
    if position == "end":
        return context + name + rest
    if position == "middle":
        return context[:half] + name + context[half:] + rest
    if position == "front":
        return name + context + rest
    raise UserError(f"class token position {position!r} is unknown; one of: end, middle, front")


# --- One transformer block, read where it is needed -------------------------------------------


def _heads(x: torch.Tensor, heads: int) -> torch.Tensor:
    """(…,L,W) → (…,H,L,W/H)."""
    return x.unflatten(-1, (heads, -1)).transpose(-2, -3)


def _project(block: ResidualAttentionBlock, y: torch.Tensor, parts: slice) -> torch.Tensor:
    """Rows of the stacked q, k, v projection: parts 0:1 q, 1:3 k and v, 0:3 all."""
    width = y.shape[-1]
    rows = slice((parts.start or 0) * width, parts.stop * width)
    return linear(y, block.attn.in_proj_weight[rows], block.attn.in_proj_bias[rows])


def _finish(block: ResidualAttentionBlock, x: torch.Tensor, attended: torch.Tensor) -> torch.Tensor:
    """Output projection, residual and MLP. attended: (…,L,W), heads joined."""
    x = x + linear(attended, block.attn.out_proj.weight, block.attn.out_proj.bias)
    return x + mlp(block.mlp, block.ln_2(x))


def _join(y: torch.Tensor) -> torch.Tensor:
    """(…,H,L,W/H) → (…,L,W)."""
    return y.transpose(-2, -3).flatten(-2)


def _block(
    block: ResidualAttentionBlock, x: torch.Tensor, queries: int | None = None, causal: bool = False
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """One block over x (B,L,W), computed at its first `queries` tokens only.

    Returns the (B,queries,W) outputs and the keys and values (B,H,L,W/H) of all tokens.
    """
    heads = block.attn.num_heads
    y = block.ln_1(x)
    n = x.shape[1] if queries is None else queries
    if n == x.shape[1]:
        q, k, v = (_heads(z, heads) for z in _project(block, y, slice(0, 3)).chunk(3, dim=-1))
    else:
        q = _heads(_project(block, y[:, :n], slice(0, 1)), heads)
        k, v = (_heads(z, heads) for z in _project(block, y, slice(1, 3)).chunk(2, dim=-1))
    if n == 0:
        return x[:, :0], k, v
    # A causal mask aligned at the first key fits a subset of first queries as well.
    mixed = F.scaled_dot_product_attention(q, k, v, is_causal=causal)
    return _finish(block, x[:, :n], _join(mixed)), k, v


# --- Text -------------------------------------------------------------------------------------


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
        deep = [] if deep is None else _per_layer(deep.to(self.dtype))
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
            x = _block(block, _replace(x, deep, i), causal=True)[0]
        x = _replace(x, deep, len(blocks) - 1)
        eot = layout.eot.repeat(len(ctx))
        rows = torch.arange(len(x), device=x.device)
        block, heads = blocks[-1], blocks[-1].attn.num_heads
        y = block.ln_1(x)
        q = _heads(_project(block, y[rows, eot].unsqueeze(1), slice(0, 1)), heads)
        k, v = (_heads(z, heads) for z in _project(block, y, slice(1, 3)).chunk(2, dim=-1))
        visible = torch.arange(length, device=x.device) <= eot[:, None]  # (KC,L)
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=visible[:, None, None])
        x = _finish(block, x[rows, eot].unsqueeze(1), _join(mixed))
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
            x = _replace(x, deep, i)
            if i == len(blocks) - 1:
                needed = 0
            elif i < len(deep) and x.shape[1] == 1 + deep[i].shape[-2]:
                needed = 1  # the next layer replaces everything but SOS
            else:
                needed = x.shape[1]
            y, k, v = _block(block, x, needed, causal=True)
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
            kv = _project(block, y, slice(1, 3))
            if i == len(blocks) - 1:
                x, y = (z.index_select(1, packing.eot) for z in (x, y))
            q = _project(block, y, slice(0, 1))
            x = _finish(block, x, attend(q, kv, *prefix[2 * i : 2 * i + 2], packing))
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


def _per_layer(deep: torch.Tensor) -> list[torch.Tensor]:
    """(J−1,N,W) or (K,J−1,N,W) → J−1 tensors (1|K,N,W)."""
    return list((deep if deep.dim() == 4 else deep.unsqueeze(0)).unbind(1))


def _replace(x: torch.Tensor, deep: list[torch.Tensor], layer: int, start: int = 1) -> torch.Tensor:
    """Before `layer`, put its prompts at tokens start…start+N−1 of x (B,L,W).

    One set of prompts serves all rows; K sets serve B/K consecutive rows each.
    """
    if not 0 < layer <= len(deep):
        return x
    vectors = deep[layer - 1]
    vectors = vectors.repeat_interleave(len(x) // len(vectors), dim=0)
    return torch.cat([x[:, :start], vectors, x[:, start + vectors.shape[1] :]], dim=1)


# --- Images -----------------------------------------------------------------------------------


class ImageEncoder(nn.Module):
    """CLIP's image tower, a ViT's fed with prompts; shares the weights of `clip_model`."""

    def __init__(self, clip_model: CLIP, fast: bool = True) -> None:
        super().__init__()
        self.visual = clip_model.visual
        self.fast = fast

    @property
    def dtype(self) -> torch.dtype:
        return self.visual.conv1.weight.dtype

    @property
    def width(self) -> int:
        """Width of the ViT's tokens.

        Raises:
            UserError: the tower is a ResNet, which takes no prompts.
        """
        if not isinstance(self.visual, VisionTransformer):
            raise UserError(
                "this method puts prompts into the image tower, and a ResNet takes none: "
                "set MODEL.BACKBONE.NAME to a ViT"
            )
        return self.visual.conv1.out_channels

    @property
    def layers(self) -> int:
        return len(self.visual.transformer.resblocks)

    def forward(
        self,
        image: torch.Tensor,
        prompts: torch.Tensor | None = None,
        deep: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Image features, not normalised; without prompts also without gradient.

        Args:
            image: (B,3,H,H).
            prompts: (N,W), appended after the patch tokens, before ln_pre; (K,N,W) for K
                sets, each serving B/K consecutive images.
            deep: (J−1,N,W) or (K,J−1,N,W), replacing the last N tokens before layers 1…J−1.

        Returns:
            (B,D).
        """
        image = image.to(self.dtype)
        if prompts is None and deep is None:
            return self._unprompted(image)
        if prompts is not None:
            prompts = prompts.to(self.dtype)
            prompts = prompts if prompts.dim() == 3 else prompts.unsqueeze(0)
        deep = [] if deep is None else _per_layer(deep.to(self.dtype))
        return self._prompted(image, prompts, deep)

    @torch.no_grad()
    def _unprompted(self, image: torch.Tensor) -> torch.Tensor:
        if not (self.fast and isinstance(self.visual, VisionTransformer)):
            return self.visual(image)
        at_once = max(1, len(image))
        if image.device.type == "cpu":
            at_once = max(_IMAGES_PER_PIECE, torch.get_num_threads())
        return torch.cat([self._prompted(part, None, []) for part in image.split(at_once)])

    def _prompted(
        self, image: torch.Tensor, prompts: torch.Tensor | None, deep: list[torch.Tensor]
    ) -> torch.Tensor:
        visual = self.visual
        x = visual.embed(image)
        own = x.shape[1]  # the image's own tokens: class and patches
        if prompts is not None:
            rows = prompts.repeat_interleave(len(x) // len(prompts), dim=0)
            x = torch.cat([x, rows.to(x.dtype)], dim=1)
        x = visual.ln_pre(x)
        blocks = visual.transformer.resblocks
        for i, block in enumerate(blocks):
            x = _replace(x, deep, i, own)
            if not self.fast:
                x = block(x.transpose(0, 1)).transpose(0, 1)
                continue
            if i == len(blocks) - 1:
                queries = 1  # only the class token is read
            elif i < len(deep) and x.shape[1] <= own + deep[i].shape[1]:
                queries = own  # the next layer replaces the rest
            else:
                queries = x.shape[1]
            x = _block(block, x, queries)[0]
        return visual.ln_post(x[:, 0]) @ visual.proj


class Encoders(nn.Module):
    """The two prompt-taking encoders of one frozen CLIP, and its temperature.

    `text`: TextEncoder; `image`: ImageEncoder; `logit_scale`: log τ. They share the weights of
    `clip_model`. fast=False takes the plain path everywhere.
    """

    def __init__(self, clip_model: CLIP, fast: bool = True) -> None:
        super().__init__()
        self.text = TextEncoder(clip_model, fast)
        self.image = ImageEncoder(clip_model, fast)
        self.logit_scale = clip_model.logit_scale
        self.requires_grad_(False)

    @property
    def embed_dim(self) -> int:
        """D, the width of both towers' features."""
        return self.text.text_projection.shape[1]

    @property
    def temperature(self) -> torch.Tensor:
        """τ = exp(logit_scale), 100 for the released weights; at least fp32."""
        scale = self.logit_scale
        return scale.to(torch.promote_types(scale.dtype, torch.float32)).exp()
