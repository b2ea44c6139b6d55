"""CoCoOp: Conditional Prompt Learning (Zhou et al., CVPR 2022, arXiv 2203.05557).

Image j's context is V + π(f̂_j): a small network π turns its normalized feature into one shift that
is added to all M context vectors, so every image has text features of its own.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

import torch
from torch import nn

from clip.prompting import Encoders
from dassl.config import CfgNode, declare_checks, whole
from dassl.engine import TRAINER_REGISTRY
from tuning.method import Classes, Features, Method, unit
from tuning.prompts import public_words, resolve_words, starting_context
from tuning.trainer import PromptTrainer


def extend_cfg(cfg: CfgNode) -> None:
    """Declare TRAINER.COCOOP and the ranges of its values."""
    cfg.TRAINER.COCOOP = CfgNode()
    cfg.TRAINER.COCOOP.N_CTX = 4  # M, without words
    cfg.TRAINER.COCOOP.CTX_INIT = "a photo of a"  # words to start from; they set M
    cfg.TRAINER.COCOOP.PREC = "fp16"  # fp32, fp16, bf16, amp
    public_words(cfg, "TRAINER.COCOOP.CTX_INIT")
    declare_checks({"TRAINER.COCOOP.N_CTX": whole(1)})


class ConditionalContext(nn.Module):
    """ctx (M,d_t), and π = Linear(D, D/16) → ReLU → Linear(D/16, d_t).

    words: token ids of the frozen words after the context.
    """

    def __init__(self, initial: torch.Tensor, dim: int, words: Sequence[int] = ()) -> None:
        super().__init__()
        self.ctx = nn.Parameter(initial)
        self.words = words
        self.meta_net = nn.Sequential(
            OrderedDict(
                linear1=nn.Linear(dim, dim // 16),
                relu=nn.ReLU(),
                linear2=nn.Linear(dim // 16, initial.shape[-1]),
            )
        )

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """image: (B,D) features → (B,1,M,d_t), each image's context for all classes."""
        shift = self.meta_net(unit(image))  # (B,d_t)
        return (self.ctx + shift.unsqueeze(1)).unsqueeze(1)


class CoCoOpMethod(Method):
    """Text features (B,C,D): every class under every image's own context."""

    trained_modules = ("context",)

    def __init__(self, encoders: Encoders, classes: Classes, context: ConditionalContext) -> None:
        super().__init__(encoders, classes)
        self.context = context
        self.words = context.words
        self.layout = encoders.text.layout(classes.names, len(context.ctx), words=context.words)

    @classmethod
    def resolve_cfg(cls, cfg: CfgNode) -> None:
        """N_CTX becomes what CTX_INIT sets."""
        resolve_words(cfg.TRAINER.COCOOP)

    @classmethod
    def from_cfg(cls, cfg: CfgNode, encoders: Encoders, classes: Classes) -> CoCoOpMethod:
        """From N_CTX and CTX_INIT."""
        c = cfg.TRAINER.COCOOP
        start = starting_context(encoders, c.CTX_INIT, c.N_CTX)
        print(f"Initial context: {start.shown}")
        context = ConditionalContext(start.vectors, encoders.embed_dim, start.words)
        return cls(encoders, classes, context)

    def features(self, image: torch.Tensor, **known: torch.Tensor) -> Features:
        """Image (B,3,I,I) or (B,D) → f (B,D), and e_jc (B,C,D) under V + π(f̂_j)."""
        image = self.encode_image(image)
        return Features(image=image, text=self.encoders.text(self.layout, self.context(image)))


@TRAINER_REGISTRY.register()
class CoCoOp(PromptTrainer):
    """Conditional Context Optimization."""

    method_class = CoCoOpMethod
    config_node = "COCOOP"
