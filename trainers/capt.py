"""CaPT: Class-adaptive Prompt Tuning (Zhang et al., arXiv 2506.23856), on CoOp and on KgCoOp.

Each class's context is the shared one, moved by what its name says, and the cross entropy has
margins by how alike names are:

    context of class c   V + g(s ẽ_c) on all M tokens,  g(x) = W₂ᵀ drop(LeakyReLU(W₁ᵀ x + b₁)) + b₂
    L_ITM = CE(z − 100 m_y, y),   z = τ f̂ êᵀ
    m_yj = cos(ẽ_y, ẽ_j) σ/(C−1) for j ≠ y,   m_yy = −Σ_j m_yj

with ẽ_c ∈ R^D the frozen text feature of the template, not normalized; W₁ (D,h), W₂ (h,d_t), stored
as (in, out), every entry of a layer uniform within ±1/√out. V starts from "a photo of a"; g isn't 0
at the start, so it doesn't start as a template. On KgCoOp its own loss is beside, w (1 − mean cos).
DeCaPT is DePT around the KgCoOp one: its L_ITM is what DePT scales by 1−λ.
Settings of the published runs, in the configs: CoOp s = .5, h = 32, σ = .0031, dropout .1; KgCoOp
s = 1, h = 32, σ = .001, no dropout, w = 1.5; DeCaPT s = .9, h = 64, σ = .0008, dropout .1, w = 1.5,
head and cwT at 18 times the rate.

What the public code does:
- The sign of the margin is as coded: the true class gains Σ_j m_yj, alike classes lose. It eases
  the loss, most where names are alike, where a margin loss usually makes it harder.
- ẽ of textures is "{} texture." in the context, "a photo of a {}, a type of texture." in KgCoOp's
  loss: `other_templates`. ẽ is cached by data set and base or new alone, whatever the names' order.
- Other sources of ẽ (word vectors, noise, images' means), other networks g, ProGrad and DAPT are
  its ablations and aren't here. A learned s stops it. It has no mixed precision; here there is.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from clip.prompting import Encoders
from dassl.config import CfgNode, declare_checks, public, real, whole
from dassl.engine import TRAINER_REGISTRY
from tuning.method import Classes, Features, unit
from tuning.prompts import WORDS
from tuning.trainer import PromptTrainer

from .coop import CoOpMethod
from .kgcoop import KgCoOpMethod


def extend_cfg(cfg: CfgNode) -> None:
    """Declare TRAINER.UCP, CaPT's name in its code, and that code's names of other keys."""
    cfg.TRAINER.UCP = CfgNode()
    cfg.TRAINER.UCP.SCALE = 1.0  # s
    cfg.TRAINER.UCP.HIDDEN_DIM = 32  # h
    cfg.TRAINER.UCP.DROPOUT = 0.1
    cfg.TRAINER.UCP.LOSS = CfgNode()
    cfg.TRAINER.UCP.LOSS.SMOOTH = 0.0031  # σ; 0: no margins
    cfg.TRAINER.UCP.LOSS.USE_SIM = True  # False: 1 in place of every cosine
    cfg.TRAINER.UCP.PREC = "fp16"  # fp32, fp16, bf16, amp
    declare_checks(
        {
            "TRAINER.UCP.SCALE": real(above=0),
            "TRAINER.UCP.HIDDEN_DIM": whole(1),
            "TRAINER.UCP.DROPOUT": real(0, 0.99),
            "TRAINER.UCP.LOSS.SMOOTH": real(0),
        }
    )
    for key in ("N_CTX", "CSC", "CLASS_TOKEN_POSITION", "W"):
        public(cfg, f"TRAINER.KGCOOP.{key}", f"TRAINER.COOP.{key}")
    words = {True: WORDS, False: None}
    public(cfg, "TRAINER.KGCOOP.CTX_INIT", "TRAINER.COOP.CTX_INIT", values=words)
    for key, value in (("MODULE", "mlp"), ("TOKENIZER_MODE", "clip"), ("VERSION", 0)):
        public(cfg, f"TRAINER.UCP.{key}", None, "CaPT is that here", values=_only(value))
    for key in ("TOKENIZER", "REDUCE_DIM", "INSERT_LAYER", "DEEP_HIDDEN_DIM", "DEEP_DROPOUT"):
        public(cfg, f"TRAINER.UCP.{key}", None, "CaPT on CoOp and KgCoOp doesn't read it")


def _only(value: object) -> Callable[[Any], Any]:
    def check(given: object) -> object:
        if given != value:
            raise ValueError(f"only {value!r} is here")
        return given

    return check


class Linear(nn.Module):
    """x W + b, W (in,out), both uniform within ±1/√out. x: (…,in) → (…,out)."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        bound = outputs**-0.5
        self.weight = nn.Parameter(torch.empty(inputs, outputs).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.empty(outputs).uniform_(-bound, bound))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x: (…,in) → (…,out)."""
        return x @ self.weight + self.bias


class Transfer(nn.Module):
    """g: what a class's name adds to its context."""

    def __init__(self, dim: int, hidden: int, width: int) -> None:
        super().__init__()
        self.down = Linear(dim, hidden)
        self.up = Linear(hidden, width)

    def forward(self, x: torch.Tensor, kept: torch.Tensor | None = None) -> torch.Tensor:
        """x: (C,D) → (C,d_t); kept (C,h): factors of the hidden units, dropout's."""
        x = F.leaky_relu(self.down(x))
        return self.up(x if kept is None else x * kept)


def margins(known: torch.Tensor, smooth: float, use_sim: bool = True) -> torch.Tensor:
    """M (C,C), row y for class y, of ẽ (C,D)."""
    classes = len(known)
    alike = unit(known) @ unit(known).t() if use_sim else known.new_ones(classes, classes)
    m = alike * (smooth / max(classes - 1, 1))
    m = m - m.diag().diag()
    return m - m.sum(dim=1).diag()


class ClassAdaptive(CoOpMethod):
    """CoOp with g and the margins. In training `features` takes dropout's factors as `kept`."""

    trained_modules = ("context", "transfer")
    further_templates = ("zeroshot",)
    known: torch.Tensor
    margin: torch.Tensor
    dropout = 0.0

    def adapted(self, cfg: CfgNode) -> ClassAdaptive:
        """Itself, with what TRAINER.UCP says."""
        c, encoders, classes = cfg.TRAINER.UCP, self.encoders, self.classes
        sentences = classes.sentences(classes.template_named("zeroshot"))
        known = encoders.text.encode(sentences).float()
        self.transfer = Transfer(encoders.embed_dim, c.HIDDEN_DIM, encoders.text.width)
        self.dropout = c.DROPOUT
        self.register_buffer("known", c.SCALE * known, persistent=False)
        margin = margins(known, c.LOSS.SMOOTH, c.LOSS.USE_SIM)
        self.register_buffer("margin", 100 * margin, persistent=False)
        return self

    def drawn(self, generator: torch.Generator | None, progress: float) -> dict[str, torch.Tensor]:
        """Dropout's factors of the hidden units, "kept" (C,h): 0 or 1/(1 − p)."""
        if not self.dropout:
            return {}
        size = len(self.known), len(self.transfer.down.bias)
        draws = torch.rand(size, generator=generator, device=self.known.device)
        return {"kept": (draws >= self.dropout) / (1 - self.dropout)}

    def encode_text(self, kept: torch.Tensor | None = None) -> torch.Tensor:
        """(C,D): of the prompts around the classes' own contexts."""
        shift = self.transfer(self.known.to(self.context.ctx.dtype), kept)
        return self.encoders.text(self.layout, self.context.ctx + shift.unsqueeze(1))

    def features(
        self, image: torch.Tensor, kept: torch.Tensor | None = None, **known: torch.Tensor
    ) -> Features:
        """As any method's; kept: what `drawn` gives."""
        if kept is None:
            return super().features(image, **known)
        return Features(self.encode_image(image), self.encode_text(kept))

    def losses(self, features: Features, label: torch.Tensor) -> dict[str, torch.Tensor]:
        """The cross entropy with margins as "itm"; label (B,)."""
        eased = self.itm_logits(features) - self.margin[label]
        return {"itm": F.cross_entropy(eased, label)}


class CaPTCoOpMethod(ClassAdaptive):
    """CoOp with class-adaptive contexts."""

    @classmethod
    def from_cfg(cls, cfg: CfgNode, encoders: Encoders, classes: Classes) -> ClassAdaptive:
        """From TRAINER.UCP, and CoOp's keys. Raises as CoOp's."""
        method = super().from_cfg(cfg, encoders, classes)
        assert isinstance(method, cls)
        return method.adapted(cfg)


class CaPTKgCoOpMethod(KgCoOpMethod, ClassAdaptive):
    """KgCoOp with class-adaptive contexts, and the margins in its "itm"."""

    @classmethod
    def from_cfg(  # type: ignore[override]  # a KgCoOpMethod, too
        cls, cfg: CfgNode, encoders: Encoders, classes: Classes
    ) -> ClassAdaptive:
        """From TRAINER.UCP, and KgCoOp's keys. Raises as KgCoOp's."""
        method = super().from_cfg(cfg, encoders, classes)
        assert isinstance(method, cls)
        return method.adapted(cfg)


class CaPT(PromptTrainer):
    """What the two share."""

    config_node = "UCP"
    model_name = "learnable_params"

    @classmethod
    def config_nodes(cls) -> tuple[str, ...]:
        """CoOp's node beside its own."""
        return (*super().config_nodes(), "COOP")


@TRAINER_REGISTRY.register()
class CaPT_CoOp(CaPT):
    """Class-adaptive prompt tuning on CoOp."""

    method_class = CaPTCoOpMethod


@TRAINER_REGISTRY.register()
class CaPT_KgCoOp(CaPT):
    """Class-adaptive prompt tuning on KgCoOp."""

    method_class = CaPTKgCoOpMethod
