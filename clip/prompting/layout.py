"""Where context vectors, frozen words and class names stand in the prompts."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from dassl.utils import UserError

from ..clip import _tokenizer
from ..packed import Packing
from ..row import Row
from ..simple_tokenizer import END, START


class PromptLayout(nn.Module):
    """Where context vectors, frozen words and class names stand in the prompts of C classes.

    `position` "end": [SOS][context][words][name][.][EOT]; "middle": the name between the two halves
    of the context; "front": the name before it. `words` are fixed text, the same for all classes:
    what is left of a context's initial words where it has fewer vectors. `tail` stands in the place
    of the dot: ", a type of pet.", say.

    Raises:
        UserError: unknown position, no classes, or a prompt longer than the tower's positions.
    """

    tokens: torch.Tensor
    slots: torch.Tensor
    own: torch.Tensor
    eot: torch.Tensor
    order: torch.Tensor
    inverse: torch.Tensor
    suffix_ids: torch.Tensor
    suffix_positions: torch.Tensor
    suffix_own: torch.Tensor

    def __init__(
        self,
        classnames: Sequence[str],
        n_ctx: int,
        position: str = "end",
        context_length: int = 77,
        words: Sequence[int] = (),
        tail: str = ".",
    ) -> None:
        super().__init__()
        names = [name.replace("_", " ") for name in classnames]
        prompts, own = [], []
        for name in names:
            ids = _tokenizer.encode(f"{name}{tail}")
            length = len(_tokenizer.encode(name))
            prompts.append(_arrange(ids[:length], ids[length:], n_ctx, position, words))
            parts = list(range(length)), list(range(length, len(ids)))
            own.append(_arrange(*parts, n_ctx, position, [-1] * len(words)))
        prefix = 1 + n_ctx + len(words) if position == "end" else 0
        self._set(prompts, own, n_ctx, context_length, names, prefix)

    @classmethod
    def of_texts(cls, texts: Sequence[str], context_length: int = 77) -> PromptLayout:
        """The layout of finished sentences: no context, only [SOS] shared."""
        layout = cls.__new__(cls)
        nn.Module.__init__(layout)
        prompts = [_tokenizer.encode(text) for text in texts]
        own = [list(range(len(ids))) for ids in prompts]
        layout._set(prompts, own, 0, context_length, texts, prefix=1)
        return layout

    def _set(
        self,
        prompts: list[list[int]],
        own: list[list[int]],
        n_ctx: int,
        context_length: int,
        names: Sequence[str],
        prefix: int,
    ) -> None:
        """prompts: token ids without SOS and EOT; −1−m stands for context vector m.

        own: which of a class's own tokens each is; negative: none of them.
        prefix: how many tokens all prompts begin with, SOS among them; 0: none to be shared.
        """
        if not prompts:
            raise UserError("no classes to write prompts for")
        encoder = _tokenizer.encoder
        prompts = [[encoder[START], *ids, encoder[END]] for ids in prompts]
        longest = max(range(len(prompts)), key=lambda c: len(prompts[c]))
        if len(prompts[longest]) > context_length:
            raise UserError(
                f"the prompt of class {names[longest]!r} has {len(prompts[longest])} tokens with "
                f"{n_ctx} for the context, the text tower takes {context_length}; "
                "shorten the name (DATASET.NAME_TOKENS cuts it) or the context"
            )
        full = torch.zeros(len(prompts), context_length, dtype=torch.long)
        own_index = torch.full_like(full, -1)
        for row, ids, indices, own_ids in zip(full, prompts, own_index, own, strict=True):
            row[: len(ids)] = torch.tensor(ids)
            indices[1 : 1 + len(own_ids)] = torch.tensor(own_ids, dtype=torch.long).clamp(min=-1)
        eot = torch.tensor([len(ids) - 1 for ids in prompts])
        self._hold(full.clamp(min=0), (-1 - full).clamp(min=-1), own_index, eot, n_ctx, prefix)

    def _hold(
        self,
        tokens: torch.Tensor,
        slots: torch.Tensor,
        own: torch.Tensor,
        eot: torch.Tensor,
        n_ctx: int,
        prefix: int,
    ) -> None:
        self.n_ctx = n_ctx
        self.context_length = tokens.shape[1]
        # Not in checkpoints: bound to the class names of this run.
        self.register_buffer("tokens", tokens, persistent=False)  # (C,77)
        self.register_buffer("slots", slots, persistent=False)  # (C,77) context vector, or −1
        self.register_buffer("own", own, persistent=False)  # (C,77) class's own token, or −1
        self.register_buffer("eot", eot, persistent=False)  # (C,)

        # The fast path's order: by length, so that similar lengths lie side by side.
        self.prefix_length = prefix
        order = torch.argsort(eot, stable=True)
        self.lengths: list[int] = (eot[order] + 1 - prefix).tolist()
        self.register_buffer("order", order, persistent=False)
        self.register_buffer("inverse", torch.argsort(order), persistent=False)
        place = torch.arange(self.context_length, device=eot.device)
        suffix = (place >= prefix) & (place <= eot[order, None])  # (C,77)
        self.register_buffer("suffix_ids", tokens[order][suffix], persistent=False)
        self.register_buffer("suffix_positions", suffix.nonzero()[:, 1], persistent=False)
        self.register_buffer("suffix_own", own[order][suffix], persistent=False)
        self._packings: dict[tuple, Packing] = {}
        self._rows: dict[tuple, Row] = {}

    def select(self, classes: torch.Tensor) -> PromptLayout:
        """The layout of these classes (n,), by index, in this order."""
        layout = PromptLayout.__new__(PromptLayout)
        nn.Module.__init__(layout)
        tokens, slots, own, eot = (
            x[classes] for x in (self.tokens, self.slots, self.own, self.eot)
        )
        layout._hold(tokens, slots, own, eot, self.n_ctx, self.prefix_length)
        return layout

    def __len__(self) -> int:
        return len(self.tokens)

    @property
    def longest(self) -> int:
        """Tokens of the longest prompt, SOS and EOT among them."""
        return self.prefix_length + self.lengths[-1]

    @property
    def shortest(self) -> int:
        """Tokens of the shortest prompt, SOS and EOT among them."""
        return self.prefix_length + self.lengths[0]

    def suffix_tokens(self, first: int, last: int) -> slice:
        """Where the suffixes of the classes order[first:last] lie among all."""
        start = sum(self.lengths[:first])
        return slice(start, start + sum(self.lengths[first:last]))

    def packing(self, first: int, last: int, extra: int = 0) -> Packing:
        """How the suffixes of the classes order[first:last], `extra` tokens longer, lie packed."""
        key = (first, last, extra, self.order.device)
        if key not in self._packings:
            lengths = [length + extra for length in self.lengths[first:last]]
            self._packings[key] = Packing(lengths, self.order.device)
        return self._packings[key]

    def row(self, prefix: int) -> Row:
        """How a prefix of so many tokens and all suffixes, in order, lie in one row."""
        key = (prefix, self.order.device)
        if key not in self._rows:
            self._rows[key] = Row(prefix, self.lengths, self.order.device)
        return self._rows[key]


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
