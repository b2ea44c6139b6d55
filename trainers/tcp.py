"""TCP: Textual-based Class-aware Prompt tuning (Yao et al., CVPR 2024, arXiv 2311.18231).

KgCoOp whose context is exchanged, halfway up the text tower, for one of each class's own. V ∈
R^{M×d_t} stands in place of the first M words of a template that keeps its end, [SOS][V][class
name][, a type of pet.][EOT]. At the input of block j = 8 (from 0) class c's M places get

    T_c = W₂ g(W₁ h_c + b₁) + b₂ ∈ R^{M·d_t},   W₁: D → D/4,   W₂: D/4 → M·d_t,   g QuickGELU
    L = CE(τ f̂ êᵀ, y) + w (1 − mean_c cos(ê_c, h_c)),   w = 8

with h_c ∈ R^D the frozen, normalized text feature of the data set's template. The image tower stays
as it is; new classes get T_c from their names. V starts from N(0, .02²) (or words), W and b as
torch's Linear, so it doesn't start as a template. 331,904 parameters on ViT-B/16.

What the public code does:
- The template around V isn't always the one of h: data sets name both (`other_templates`, "tcp" and
  "tcp_context"). Other data sets have one for both.
- w and the layer are written into it, and T_c replaces all of what stood there: TRAINER.COOP.W
  changes nothing, there and here. The paper weighs T_c against what it replaces; that isn't there.
- Adam's ε is 1e-3 (a changed Dassl): OPTIM.ADAM_EPS. Its "amp" branch stops; here there is one.
- CLASS_TOKEN_POSITION is never read: the class name stands where the template has it. A context
  per class stops it.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

import torch
from torch import nn

from clip.model import QuickGELU
from clip.prompting import Encoders, Tokens
from dassl.config import CfgNode, declare_checks, real, whole
from dassl.engine import TRAINER_REGISTRY
from dassl.utils import UserError
from tuning.method import Classes, Features, Method, unit
from tuning.prompts import resolve_words, starting_context
from tuning.trainer import PromptTrainer


def extend_cfg(cfg: CfgNode) -> None:
    """Declare TRAINER.TCP; N_CTX, CTX_INIT and PREC are CoOp's keys, as in its code."""
    cfg.TRAINER.TCP = CfgNode()
    cfg.TRAINER.TCP.W = 8.0  # w
    cfg.TRAINER.TCP.LAYER = 8  # j
    cfg.TRAINER.TCP.REDUCTION = 4  # D/4 is the width between W₁ and W₂
    declare_checks({"TRAINER.TCP.W": real(0), "TRAINER.TCP.LAYER": whole()})
    declare_checks({"TRAINER.TCP.REDUCTION": whole(1)})


class ClassAwareContext(nn.Module):
    """ctx: V (M,d_t); called, it gives T.

    words: token ids of the frozen words after the context.
    """

    def __init__(
        self, initial: torch.Tensor, dim: int, reduction: int = 4, words: Sequence[int] = ()
    ) -> None:
        super().__init__()
        self.ctx = nn.Parameter(initial)
        self.words = words
        self.meta_net = nn.Sequential(
            OrderedDict(
                linear1=nn.Linear(dim, dim // reduction),
                relu=QuickGELU(),
                linear2=nn.Linear(dim // reduction, initial.numel()),
            )
        )

    def forward(self, knowledge: torch.Tensor) -> torch.Tensor:
        """knowledge: h (C,D) → T (C,M,d_t)."""
        return self.meta_net(knowledge).unflatten(-1, self.ctx.shape)


class TCPMethod(Method):
    """Text features of the prompts around V, with T from a layer on; images as they are.

    Args:
        context: V and the network.
        frozen_text: (C,D) features of the data set's template.
        tail: what follows the class name.
        weight: w.
        layer: j. One that the tower hasn't: T is never put in, as in the public code.
    """

    template_name = "tcp"
    further_templates = ("tcp_context",)
    trained_modules = ("context",)
    frozen_text: torch.Tensor

    def __init__(
        self,
        encoders: Encoders,
        classes: Classes,
        context: ClassAwareContext,
        frozen_text: torch.Tensor,
        tail: str = ".",
        weight: float = 8.0,
        layer: int = 8,
    ) -> None:
        super().__init__(encoders, classes)
        self.context = context
        self.words, self.tail = context.words, tail
        self.layout = encoders.text.layout(
            classes.names, len(context.ctx), words=self.words, tail=tail
        )
        self.register_buffer("frozen_text", unit(frozen_text), persistent=False)
        self.weight, self.layer = weight, layer

    @classmethod
    def resolve_cfg(cls, cfg: CfgNode) -> None:
        """N_CTX becomes what CTX_INIT sets."""
        cfg.TRAINER.COOP.CTX_INIT = cfg.TRAINER.COOP.CTX_INIT or ""
        resolve_words(cfg.TRAINER.COOP)

    @classmethod
    def from_cfg(cls, cfg: CfgNode, encoders: Encoders, classes: Classes) -> TCPMethod:
        """From all keys of TRAINER.TCP, and COOP's N_CTX and CTX_INIT.

        Raises:
            UserError: a context per class, or prompts longer than the tower takes.
        """
        c, own = cfg.TRAINER.COOP, cfg.TRAINER.TCP
        if c.CSC:
            raise UserError("TRAINER.COOP.CSC is True: TCP has one context for all classes")
        if c.W != own.W:
            print(f"TRAINER.COOP.W has no effect, as in TCP's code: TRAINER.TCP.W is {own.W:g}")
        if encoders.text.layers <= own.LAYER:
            print(
                f"TRAINER.TCP.LAYER is {own.LAYER}, and the text tower has layers 0 to "
                f"{encoders.text.layers - 1}: the classes' own tokens are never put in"
            )
        start = starting_context(encoders, c.CTX_INIT or "", c.N_CTX)
        before, tail = classes.template_named("tcp_context").split("{}")
        rest = encoders.text.token_ids(before)[len(start.vectors) :]
        print(f"Initial context: {start.shown}")
        words = (*start.words, *rest)
        context = ClassAwareContext(start.vectors, encoders.embed_dim, own.REDUCTION, words)
        frozen = encoders.text.encode(classes.sentences())
        return cls(encoders, classes, context, frozen, tail, own.W, own.LAYER)

    def encode_text(self) -> torch.Tensor:
        """(C,D): of the prompts with V up to layer j, and T from there on."""
        changes = []
        if self.layer < self.encoders.text.layers:
            knowledge = self.frozen_text.to(self.context.ctx.dtype)
            changes = [Tokens(self.layer, self.context(knowledge))]
        return self.encoders.text(self.layout, self.context.ctx, changes=changes)

    def losses(self, features: Features, label: torch.Tensor) -> dict[str, torch.Tensor]:
        """CE as "itm", and w · (1 − mean_c cos(ê_c, h_c)) as "kg"; label (B,)."""
        cosine = (unit(features.text) * self.frozen_text).sum(dim=-1)
        return {**super().losses(features, label), "kg": self.weight * (1 - cosine.mean())}


@TRAINER_REGISTRY.register()
class TCP(PromptTrainer):
    """Textual-based class-aware prompt tuning."""

    method_class = TCPMethod
    config_node = "COOP"

    @classmethod
    def config_nodes(cls) -> tuple[str, ...]:
        """CoOp's node beside its own."""
        return (*super().config_nodes(), "TCP")
