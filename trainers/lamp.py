"""Low-rank context, after LAMP (NAACL 2025, arXiv 2502.12200). Adaptation: ours.

The paper tunes T5 and Llama 2: a soft prompt (l,d) is cut by SVD to rank r, of which U (l,r), q (r)
and V (r,d) are trained; a compressed outer product lets its tokens interact, average pooling
shortens it. No code was found, and the outer product's formula wasn't read: the interaction below
is ours. No published result on CLIP exists. With l = M·p rows,

    R = U diag(q) V,   G = tril(U Uᵀ), each row divided by its sum of absolute values
    context: the means of each p successive rows of R + κ G R

so row i of G R mixes the rows up to i by how near they are in U. U, q and V start from the SVD of a
matrix that has each initial word p times, κ from 0: it starts as "a photo of a {}." as long as r is
at least the number of different words. The loss is cross entropy; q has a rate of its own. What it
would have to show: l tokens at the cost of M. Its controls are CoOp with M and with l vectors.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from clip.prompting import Encoders
from dassl.config import CfgNode, declare_checks, real, whole
from dassl.engine import TRAINER_REGISTRY
from dassl.utils import UserError
from tuning.claims import Claim, Row
from tuning.method import Classes, Method
from tuning.prompts import WORDS, public_words, resolve_words, starting_context
from tuning.trainer import PromptTrainer

from .coop import FROM_WORDS, SIXTEEN_VECTORS


def extend_cfg(cfg: CfgNode) -> None:
    """Declare TRAINER.LAMP and the ranges of its values."""
    cfg.TRAINER.LAMP = CfgNode()
    cfg.TRAINER.LAMP.N_CTX = 4  # M, the tokens that the tower sees
    cfg.TRAINER.LAMP.CTX_INIT = WORDS  # words to start from; they set M
    cfg.TRAINER.LAMP.POOL = 4  # p, the rows whose mean a token is
    cfg.TRAINER.LAMP.RANK = 4  # r
    cfg.TRAINER.LAMP.Q_LR_MULT = 5.0  # learning rate of q, in that of all else
    cfg.TRAINER.LAMP.PREC = "fp16"  # fp32, fp16, bf16, amp
    public_words(cfg, "TRAINER.LAMP.CTX_INIT")
    declare_checks({f"TRAINER.LAMP.{key}": whole(1) for key in ("N_CTX", "POOL", "RANK")})
    declare_checks({"TRAINER.LAMP.Q_LR_MULT": real(0)})


class LowRankContext(nn.Module):
    """u: (l,r); q: (r); v: (r,d_t); kappa: a number. Called, it gives the context (l/p,d_t).

    Args:
        initial: (l,d_t).
        rank: r, up to l and d_t.
        pool: p.
        words: token ids of the frozen words after the context.
    """

    def __init__(
        self, initial: torch.Tensor, rank: int, pool: int, words: Sequence[int] = ()
    ) -> None:
        super().__init__()
        if rank > min(initial.shape):
            raise UserError(
                f"TRAINER.LAMP.RANK is {rank}; a matrix of {initial.shape[0]} tokens of "
                f"{initial.shape[1]} numbers has at most {min(initial.shape)}"
            )
        # In fp64 on the CPU, so that the start is the same on every device.
        u, q, v = torch.linalg.svd(initial.double().cpu(), full_matrices=False)
        parts = u[:, :rank], q[:rank], v[:rank]
        self.u, self.q, self.v = (nn.Parameter(part.float().contiguous()) for part in parts)
        self.kappa = nn.Parameter(torch.zeros(()))
        self.pool = pool
        self.words = words

    def forward(self) -> torch.Tensor:
        """→ (l/p,d_t): the means of each p rows of R + κ G R, R = U diag(q) V."""
        rows = (self.u * self.q) @ self.v
        near = (self.u @ self.u.t()).tril()
        mixed = (near / near.abs().sum(dim=-1, keepdim=True)) @ rows
        return (rows + self.kappa * mixed).unflatten(0, (-1, self.pool)).mean(dim=1)


class LAMPMethod(Method):
    """Text features of the prompts around a low-rank context, images as they are.

    Args:
        context: `LowRankContext`.
        q_lr_mult: the learning rate of q, in the others'.
    """

    trained_modules = ("context",)

    def __init__(
        self,
        encoders: Encoders,
        classes: Classes,
        context: LowRankContext,
        q_lr_mult: float = 5.0,
    ) -> None:
        super().__init__(encoders, classes)
        self.context = context
        self.q_lr_mult = q_lr_mult
        self.words = context.words
        n_ctx = len(context.u) // context.pool
        self.layout = encoders.text.layout(classes.names, n_ctx, words=context.words)

    @classmethod
    def resolve_cfg(cls, cfg: CfgNode) -> None:
        """N_CTX becomes what CTX_INIT sets."""
        resolve_words(cfg.TRAINER.LAMP)

    @classmethod
    def from_cfg(cls, cfg: CfgNode, encoders: Encoders, classes: Classes) -> LAMPMethod:
        """From N_CTX, CTX_INIT, POOL, RANK and Q_LR_MULT.

        Raises:
            UserError: a rank above l or d_t.
        """
        c = cfg.TRAINER.LAMP
        if c.CTX_INIT:
            start = starting_context(encoders, c.CTX_INIT, c.N_CTX)
            initial = start.vectors.repeat_interleave(c.POOL, dim=0)
        else:
            start = starting_context(encoders, "", c.N_CTX * c.POOL)
            initial = start.vectors
        print(f"Initial context: {start.shown}, {len(initial)} rows of rank {c.RANK}")
        context = LowRankContext(initial, c.RANK, c.POOL, start.words)
        return cls(encoders, classes, context, c.Q_LR_MULT)

    def encode_text(self) -> torch.Tensor:
        """(C,D): of the prompts [SOS][pooled context][class name][.][EOT]."""
        return self.encoders.text(self.layout, self.context())

    def param_groups(self, lr: float) -> list[dict]:
        """U, V and κ at `lr`; q at `lr` × Q_LR_MULT."""
        context = self.context
        return [
            {"params": [context.u, context.v, context.kappa], "lr": lr},
            {"params": [context.q], "lr": lr * self.q_lr_mult},
        ]


@TRAINER_REGISTRY.register()
class LAMP(PromptTrainer):
    """Low-rank context, after LAMP; adaptation: ours."""

    method_class = LAMPMethod
    config_node = "LAMP"
    claim = Claim(
        "16 tokens' worth at the cost of four, with fewer parameters",
        (Row("LAMP", "LAMP"),),
        (FROM_WORDS, SIXTEEN_VECTORS),
        ("cost",),
    )
