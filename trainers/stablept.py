"""StablePT on CLIP, after Liu et al. (Findings of EMNLP 2024, arXiv 2404.19335). Adaptation: ours.

The paper tunes RoBERTa: hard prompt and soft prompts are separate inputs, the soft ones read the
text by cross attention and learn by a supervised contrast of the classes, so that their start
matters less. Its abstract and its code were read, its own formulas weren't. No published result on
CLIP exists. Hard input: the frozen features e⁰_c ∈ R^D of the data set's template, not normalized.
Soft input: S tokens P ∈ R^{S×d_t}, which read T_c ∈ R^{L_c×d_t}, the frozen text tower's tokens of
the same sentence, SOS to EOT, after its last norm:

    X_c = LN(P) + attention(LN(P), LN(T_c)),   P_c = LN(X_c) + MLP(LN(X_c)),   three norms
    e_c = e⁰_c + W mean_s P_c,   W ∈ R^{D×d_t}, zeros: it starts as the template
    L_con = mean over the 2B rows x of {f̂_i} ∪ {ê_{y_i}}, and over each one's positives x⁺, the
            other rows of its class, of −log [exp(x·x⁺/.3) / Σ_{x'≠x} exp(x·x'/.3)]
    L = CE(τ f̂ êᵀ, y) + L_con

4 heads, no bias at q, k and v, MLP d_t → d_t/2 → GELU → d_t, no dropout. P starts from
N(0, INIT_STD²) or from words; that the start doesn't matter is the claim, and CoOp's spread its
control. With few images a batch the contrast has little to tell apart: its own schedule has 32. P_c
comes from a class's name alone, so new classes have it too.

What the code does otherwise: its logits come from a trained block over the text alone, so that the
soft prompts and their contrast touch nothing that the logits are made of; here, as in the paper's
drawing, they do. 8 heads, dropout, padding is read too; a norm before the mean of P_c. The contrast
is of the mean soft prompts of a batch's texts, with 1e-5 in the logarithm; class weights by a
batch's counts in the cross entropy; the gradient's norm is clipped at 15; its rate doesn't fall.
"""

from __future__ import annotations

import torch
from torch import nn

from clip.prompting import Encoders, PromptLayout, Read
from dassl.config import CfgNode, declare_checks, real, whole
from dassl.engine import TRAINER_REGISTRY
from dassl.utils import UserError
from tuning.claims import Claim, Row
from tuning.method import Classes, Features, Method, unit
from tuning.prompts import WORDS, public_words, resolve_words, starting_context
from tuning.trainer import PromptTrainer

from .coop import FOUR_VECTORS, FROM_WORDS


def extend_cfg(cfg: CfgNode) -> None:
    """Declare TRAINER.STABLEPT."""
    cfg.TRAINER.STABLEPT = CfgNode()
    cfg.TRAINER.STABLEPT.N_CTX = 10  # S
    cfg.TRAINER.STABLEPT.CTX_INIT = ""  # words to start from; they set S
    cfg.TRAINER.STABLEPT.INIT_STD = 1.0  # of a random start; the code's
    cfg.TRAINER.STABLEPT.HEADS = 4
    cfg.TRAINER.STABLEPT.CONTRAST_WEIGHT = 1.0
    cfg.TRAINER.STABLEPT.TEMPERATURE = 0.3
    cfg.TRAINER.STABLEPT.PREC = "fp16"  # fp32, fp16, bf16, amp
    public_words(cfg, "TRAINER.STABLEPT.CTX_INIT")
    declare_checks({f"TRAINER.STABLEPT.{key}": whole(1) for key in ("N_CTX", "HEADS")})
    declare_checks(
        {
            "TRAINER.STABLEPT.INIT_STD": real(0),
            "TRAINER.STABLEPT.CONTRAST_WEIGHT": real(0),
            "TRAINER.STABLEPT.TEMPERATURE": real(above=0),
        }
    )


class SoftPrompts(nn.Module):
    """P (S,d_t), the block that reads texts with it, and W.

    Args:
        initial: P.
        dim: D.
        heads: of the attention; they divide d_t.
    """

    def __init__(self, initial: torch.Tensor, dim: int, heads: int = 4) -> None:
        super().__init__()
        width = initial.shape[1]
        if width % heads:
            raise UserError(f"TRAINER.STABLEPT.HEADS is {heads}; it must divide {width}")
        self.heads = heads
        self.ctx = nn.Parameter(initial)
        self.norm_prompts, self.norm_texts, self.norm_mlp = (nn.LayerNorm(width) for _ in range(3))
        self.q, self.k, self.v = (nn.Linear(width, width, bias=False) for _ in range(3))
        self.out = nn.Linear(width, width)
        self.mlp = nn.Sequential(
            nn.Linear(width, width // 2), nn.GELU(), nn.Linear(width // 2, width)
        )
        self.project = nn.Linear(width, dim, bias=False)
        nn.init.zeros_(self.project.weight)

    def forward(self, texts: torch.Tensor, real: torch.Tensor) -> torch.Tensor:
        """→ (C,D), of the tokens texts (C,L,d_t); real (C,L): which of them are no padding."""
        prompts = self.norm_prompts(self.ctx)
        texts = self.norm_texts(texts)
        q, k, v = (
            x.unflatten(-1, (self.heads, -1)).transpose(-2, -3)
            for x in (self.q(prompts)[None], self.k(texts), self.v(texts))
        )  # (1|C,H,S|L,E)
        scores = q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5
        shares = scores.masked_fill(~real[:, None, None], float("-inf")).softmax(dim=-1)
        read = (shares @ v).transpose(-2, -3).flatten(-2)  # (C,S,d_t)
        x = self.norm_mlp(prompts + self.out(read))
        return self.project((x + self.mlp(x)).mean(dim=1))


def contrast(x: torch.Tensor, label: torch.Tensor, temperature: float) -> torch.Tensor:
    """Supervised contrastive loss of normalized rows x (n,D); each class has two rows or more."""
    own = torch.eye(len(x), dtype=torch.bool, device=x.device)
    scores = (x @ x.t() / temperature).masked_fill(own, float("-inf"))
    log_p = scores.log_softmax(dim=1).masked_fill(own, 0)
    positive = (label[:, None] == label) & ~own
    return -((log_p * positive).sum(dim=1) / positive.sum(dim=1)).mean()


class StablePTMethod(Method):
    """Text features of the template, each with what the soft prompts read in it.

    Args:
        soft: P, block and W.
        weight: of L_con.
        temperature: .3.
    """

    trained_modules = ("soft",)
    frozen_text: torch.Tensor
    texts: torch.Tensor
    real: torch.Tensor

    def __init__(
        self,
        encoders: Encoders,
        classes: Classes,
        soft: SoftPrompts,
        weight: float = 1.0,
        temperature: float = 0.3,
    ) -> None:
        super().__init__(encoders, classes)
        self.soft = soft
        self.weight, self.temperature = weight, temperature
        text = encoders.text
        layout = PromptLayout.of_texts(classes.sentences(), text.context_length)
        layout = layout.to(text.positional_embedding.device)
        reads = {"tokens": Read(at=slice(0, layout.longest))}
        with torch.no_grad():
            seen = text(layout, reads=reads)
        self.register_buffer("frozen_text", seen["features"], persistent=False)
        self.register_buffer("texts", seen["tokens"], persistent=False)
        places = torch.arange(layout.longest, device=layout.eot.device)
        self.register_buffer("real", places <= layout.eot[:, None], persistent=False)

    @classmethod
    def resolve_cfg(cls, cfg: CfgNode) -> None:
        """CTX_INIT and N_CTX become what the method makes of them."""
        resolve_words(cfg.TRAINER.STABLEPT)

    @classmethod
    def from_cfg(cls, cfg: CfgNode, encoders: Encoders, classes: Classes) -> StablePTMethod:
        """From all keys of TRAINER.STABLEPT."""
        c = cfg.TRAINER.STABLEPT
        if c.CTX_INIT:
            start = starting_context(encoders, c.CTX_INIT, c.N_CTX)
            initial, shown = start.vectors, start.shown
        else:
            initial = torch.randn(c.N_CTX, encoders.text.width) * c.INIT_STD
            shown = f"N(0, {c.INIT_STD:g}²)"
        print(f"Initial soft prompts: {len(initial)}, {shown}")
        soft = SoftPrompts(initial, encoders.embed_dim, c.HEADS)
        return cls(encoders, classes, soft, c.CONTRAST_WEIGHT, c.TEMPERATURE)

    def encode_text(self) -> torch.Tensor:
        """(C,D): e⁰ + z."""
        texts = self.texts.to(self.soft.ctx.dtype)
        return self.frozen_text + self.soft(texts, self.real)

    def losses(self, features: Features, label: torch.Tensor) -> dict[str, torch.Tensor]:
        """CE as "itm" and L_con as "contrast"; label (B,)."""
        rows = torch.cat([unit(features.image), unit(features.text)[label]])
        loss = contrast(rows, label.repeat(2), self.temperature)
        return {**super().losses(features, label), "contrast": self.weight * loss}


@TRAINER_REGISTRY.register()
class StablePT(PromptTrainer):
    """StablePT on CLIP; adaptation: ours."""

    method_class = StablePTMethod
    config_node = "STABLEPT"
    claim = Claim(
        "the start matters less than CoOp's",
        (
            Row("StablePT, N(0, 1)", "StablePT"),
            Row("StablePT, N(0, .02²)", "StablePT", {"TRAINER.STABLEPT.INIT_STD": "0.02"}),
            Row("StablePT, words", "StablePT", {"TRAINER.STABLEPT.CTX_INIT": WORDS}),
        ),
        (FROM_WORDS, FOUR_VECTORS),
        ("starts",),
    )
