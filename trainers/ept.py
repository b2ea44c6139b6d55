"""EPT on CLIP, after Efficient Prompt Tuning (AAAI 2025, arXiv 2405.11464). Adaptation: ours.

The paper tunes T5: a long prompt is cut into a short one and a low-rank product that is added to
the frozen embeddings of the input's tokens; prompt fusion lets the short prompt attend to that
product, multi-space projection passes it through several gated subspaces. It names no code, and its
formulas weren't read: those below are inferred from its abstract. No published result on CLIP
exists. With V₀ ∈ R^{M×d_t} and A B ∈ R^{n×d_t} of rank r, n the number of shifted tokens,

    shift       row j of A B is added to the embedding of a class's own token j (name and dot)
    fusion      F = softmax((V₀ W_q)(A B W_k)ᵀ / √h) (A B W_v) W_o
    projection  S = Σ_k g_k ReLU(V₀ U_k) D_k,   g = softmax(W_g mean_m V₀_m)
    context     V = V₀ + F + S

A, W_o and D_k start at zero, so V = V₀ and nothing is shifted: it starts as "a photo of a {}.". The
loss is cross entropy. A and B have a rate of their own, as in the Decomposed Prompt Tuning that it
builds on. All of it is shared by the classes, so new ones have it too; its control is CoOp.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from clip.prompting import Encoders, NameShift
from dassl.config import CfgNode, declare_checks, real, whole
from dassl.engine import TRAINER_REGISTRY
from tuning.claims import Claim, Row
from tuning.method import Classes, Method
from tuning.prompts import WORDS, public_words, resolve_words, starting_context
from tuning.trainer import PromptTrainer

from .coop import FROM_WORDS, SIXTEEN_VECTORS


def extend_cfg(cfg: CfgNode) -> None:
    """Declare TRAINER.EPT and the ranges of its values."""
    cfg.TRAINER.EPT = CfgNode()
    cfg.TRAINER.EPT.N_CTX = 4  # M
    cfg.TRAINER.EPT.CTX_INIT = WORDS  # words to start from; they set M
    cfg.TRAINER.EPT.TOKENS = 8  # n, the own tokens of a class that are shifted
    cfg.TRAINER.EPT.RANK = 4  # r
    cfg.TRAINER.EPT.FUSION_WIDTH = 32  # h
    cfg.TRAINER.EPT.SPACES = 4
    cfg.TRAINER.EPT.SPACE_WIDTH = 16
    cfg.TRAINER.EPT.SHIFT_LR_MULT = 2.0  # learning rate of A and B, in that of all else
    cfg.TRAINER.EPT.PREC = "fp16"  # fp32, fp16, bf16, amp
    public_words(cfg, "TRAINER.EPT.CTX_INIT")
    numbers = ("N_CTX", "TOKENS", "RANK", "FUSION_WIDTH", "SPACES", "SPACE_WIDTH")
    declare_checks({f"TRAINER.EPT.{key}": whole(1) for key in numbers})
    declare_checks({"TRAINER.EPT.SHIFT_LR_MULT": real(0)})


def linear_start(inputs: int, *shape: int) -> nn.Parameter:
    """Uniform within ±1/√inputs, as torch's Linear starts."""
    return nn.Parameter(torch.empty(shape).uniform_(-(inputs**-0.5), inputs**-0.5))


class TokenShift(nn.Module):
    """A B (n,d_t). a: (n,r), zeros; b: (r,d_t), N(0, .02²)."""

    def __init__(self, tokens: int, rank: int, width: int) -> None:
        super().__init__()
        self.a = nn.Parameter(torch.zeros(tokens, rank))
        self.b = nn.Parameter(torch.randn(rank, width) * 0.02)

    def forward(self) -> torch.Tensor:
        """→ A B (n,d_t)."""
        return self.a @ self.b


class Fusion(nn.Module):
    """F (M,d_t) of V₀ (M,d_t) and A B (n,d_t). q, k, v: (d_t,h); o: (h,d_t), zeros."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.q, self.k, self.v = (linear_start(width, width, hidden) for _ in range(3))
        self.o = nn.Parameter(torch.zeros(hidden, width))

    def forward(self, context: torch.Tensor, shift: torch.Tensor) -> torch.Tensor:
        """V₀ (M,d_t), A B (n,d_t) → F = softmax((V₀ W_q)(A B W_k)ᵀ / √h) (A B W_v) W_o."""
        scores = (context @ self.q) @ (shift @ self.k).t() * self.q.shape[1] ** -0.5
        return scores.softmax(dim=-1) @ (shift @ self.v) @ self.o


class Projection(nn.Module):
    """S (M,d_t) of V₀ (M,d_t). down: (s,d_t,u); up: (s,u,d_t), zeros; gate: (s,d_t)."""

    def __init__(self, width: int, spaces: int, hidden: int) -> None:
        super().__init__()
        self.down = linear_start(width, spaces, width, hidden)
        self.up = nn.Parameter(torch.zeros(spaces, hidden, width))
        self.gate = linear_start(width, spaces, width)

    def forward(self, context: torch.Tensor) -> torch.Tensor:
        """V₀ (M,d_t) → S = Σ_k g_k ReLU(V₀ U_k) D_k."""
        gates = (self.gate @ context.mean(dim=0)).softmax(dim=0)
        each = (context @ self.down).relu() @ self.up  # (s,M,d_t)
        return (gates[:, None, None] * each).sum(dim=0)


class FusedContext(nn.Module):
    """ctx: V₀ (M,d_t); called with A B it gives V (M,d_t).

    words: token ids of the frozen words after the context.
    """

    def __init__(
        self,
        initial: torch.Tensor,
        fusion: Fusion,
        projection: Projection,
        words: Sequence[int] = (),
    ) -> None:
        super().__init__()
        self.ctx = nn.Parameter(initial)
        self.fusion = fusion
        self.projection = projection
        self.words = words

    def forward(self, shift: torch.Tensor) -> torch.Tensor:
        """A B (n,d_t) → V = V₀ + F + S (M,d_t)."""
        return self.ctx + self.fusion(self.ctx, shift) + self.projection(self.ctx)


class EPTMethod(Method):
    """Text features of the prompts around V with shifted names, images as they are.

    Args:
        context: V₀, fusion and projection.
        shift: A and B.
        shift_lr_mult: their learning rate, in the context's.
    """

    trained_modules = ("context", "shift")

    def __init__(
        self,
        encoders: Encoders,
        classes: Classes,
        context: FusedContext,
        shift: TokenShift,
        shift_lr_mult: float = 2.0,
    ) -> None:
        super().__init__(encoders, classes)
        self.context = context
        self.shift = shift
        self.shift_lr_mult = shift_lr_mult
        self.words = context.words
        self.layout = encoders.text.layout(classes.names, len(context.ctx), words=context.words)

    @classmethod
    def resolve_cfg(cls, cfg: CfgNode) -> None:
        """N_CTX becomes what CTX_INIT sets."""
        resolve_words(cfg.TRAINER.EPT)

    @classmethod
    def from_cfg(cls, cfg: CfgNode, encoders: Encoders, classes: Classes) -> EPTMethod:
        """From all keys of TRAINER.EPT; F, S and the shift are zero at the start."""
        c, width = cfg.TRAINER.EPT, encoders.text.width
        start = starting_context(encoders, c.CTX_INIT, c.N_CTX)
        print(f"Initial context: {start.shown}")
        fusion = Fusion(width, c.FUSION_WIDTH)
        projection = Projection(width, c.SPACES, c.SPACE_WIDTH)
        context = FusedContext(start.vectors, fusion, projection, start.words)
        return cls(encoders, classes, context, TokenShift(c.TOKENS, c.RANK, width), c.SHIFT_LR_MULT)

    def encode_text(self) -> torch.Tensor:
        """(C,D): of the prompts [SOS][V][class name][.][EOT], A B added to name and dot."""
        shift = self.shift()
        return self.encoders.text(self.layout, self.context(shift), changes=[NameShift(shift)])

    def param_groups(self, lr: float) -> list[dict]:
        """Context, fusion and projection at `lr`; A and B at `lr` × SHIFT_LR_MULT."""
        return [
            {"params": list(self.context.parameters()), "lr": lr},
            {"params": list(self.shift.parameters()), "lr": lr * self.shift_lr_mult},
        ]


@TRAINER_REGISTRY.register()
class EPT(PromptTrainer):
    """Efficient Prompt Tuning on CLIP; adaptation: ours."""

    method_class = EPTMethod
    config_node = "EPT"
    claim = Claim(
        "a short prompt, fused and projected, does more than CoOp's at about its cost",
        (Row("EPT", "EPT"),),
        (FROM_WORDS, SIXTEEN_VECTORS),
        ("cost",),
    )
