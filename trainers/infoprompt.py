"""InfoPrompt on CLIP, after Wu et al. (NeurIPS 2023, arXiv 2306.04933). Adaptation: ours.

The paper tunes RoBERTa: its prompts share as much information as they can with the classification
head's parameters ("head loss") and with what the encoder makes of them ("representation loss"), by
bounds of noise-contrastive estimation beside the cross entropy. It claims that training converges
faster and that the prompts' start matters less. Its abstract and its code were read, its own
formulas weren't. No published result on CLIP exists. CoOp's context V ∈ R^{M×d_t}, u = mean_m V_m:

    head      h = mean_c W_c, W_c ∈ R^{d_t} the mean token embedding of class c's name
              L_head = −log softmax([u·h, n_1·h, …, n_K·h] / √d_t)_0
              n_k the embeddings of K random tokens of the vocabulary, others in each step
    features  q = A u, A ∈ R^{D×d_t} trained, torch's own start of a Linear layer
              L_rep = −mean_c log softmax([ê_c·q, r_1·q, …, r_{RC}·q] / √D)_0
              r: the normalized features of the data set's template, each R times with noise
              N(0, .1²) of its own, others in each step and the same for every c
    L = CE + s (.1 L_head + .2 L_rep),   s = 1 − DECAY (epochs begun) / (epochs)

Weights, and DECAY 0, are the code's. The context starts from words or from N(0, .02²): that both do
is the claim, and CoOp from both its control. From words it starts as "a photo of a {}.".

What the code does otherwise: prompts are made for each input by a small network out of the
unprompted feature; the head's rows are trained and start as two label words, here they are fixed;
the head's negatives are the input's own tokens; the features pass a Gaussian bottleneck of 32
numbers with a loss of its own, which gives the second loss its noise, drawn for each row; that
loss's q sees the prompts without a gradient, here they take part.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from clip.prompting import Encoders
from dassl.config import CfgNode, declare_checks, real, whole
from dassl.engine import TRAINER_REGISTRY
from tuning.claims import Claim, Row
from tuning.method import Classes, Features, unit
from tuning.prompts import WORDS, public_words, resolve_words, starting_context
from tuning.trainer import PromptTrainer

from .coop import FOUR_VECTORS, FROM_WORDS, Context, CoOpMethod


def extend_cfg(cfg: CfgNode) -> None:
    """Declare TRAINER.INFOPROMPT."""
    cfg.TRAINER.INFOPROMPT = CfgNode()
    cfg.TRAINER.INFOPROMPT.N_CTX = 4  # M
    cfg.TRAINER.INFOPROMPT.CTX_INIT = WORDS  # words to start from; they set M; "": N(0, .02²)
    cfg.TRAINER.INFOPROMPT.HEAD_WEIGHT = 0.1  # of L_head
    cfg.TRAINER.INFOPROMPT.HEAD_NEGATIVES = 64  # K
    cfg.TRAINER.INFOPROMPT.FEATURE_WEIGHT = 0.2  # of L_rep
    cfg.TRAINER.INFOPROMPT.FEATURE_DRAWS = 4  # R
    cfg.TRAINER.INFOPROMPT.NOISE = 0.1  # its standard deviation
    cfg.TRAINER.INFOPROMPT.DECAY = 0.0  # 1: both weights fall to 0 in the last epoch
    cfg.TRAINER.INFOPROMPT.PREC = "fp16"  # fp32, fp16, bf16, amp
    public_words(cfg, "TRAINER.INFOPROMPT.CTX_INIT")
    numbers = ("N_CTX", "HEAD_NEGATIVES", "FEATURE_DRAWS")
    declare_checks({f"TRAINER.INFOPROMPT.{key}": whole(1) for key in numbers})
    declare_checks(
        {
            "TRAINER.INFOPROMPT.HEAD_WEIGHT": real(0),
            "TRAINER.INFOPROMPT.FEATURE_WEIGHT": real(0),
            "TRAINER.INFOPROMPT.NOISE": real(0),
            "TRAINER.INFOPROMPT.DECAY": real(0, 1),
        }
    )


def first_of(positive: torch.Tensor, negatives: torch.Tensor) -> torch.Tensor:
    """mean_i −log softmax([p_i, n_1, …])_0 of positive (n,) and negatives (K,)."""
    logits = torch.cat([positive[:, None], negatives.expand(len(positive), -1)], dim=1)
    return -logits.log_softmax(dim=1)[:, 0].mean()


DRAWN = ("tokens", "noise", "share")


class InfoPromptMethod(CoOpMethod):
    """CoOp with a "head" and a "features" loss.

    Its features have more in training: "tokens" (K,), ids of the head's negatives; "noise"
    (R,C,D), what is added to the other loss's; "share" (), s. Losses draw what is missing.

    Args:
        context: V.
        critic: A, (D,d_t).
        head_weight, feature_weight: of the two losses.
        negatives, draws: K and R.
        noise: its standard deviation.
        decay: how much of the weights is gone in the last epoch.
    """

    trained_modules: tuple[str, ...] = ("context", "critic")
    sees = ()  # its losses are one data set's
    head: torch.Tensor
    frozen_text: torch.Tensor

    def __init__(
        self,
        encoders: Encoders,
        classes: Classes,
        context: Context,
        critic: nn.Linear,
        head_weight: float = 0.1,
        feature_weight: float = 0.2,
        negatives: int = 64,
        draws: int = 4,
        noise: float = 0.1,
        decay: float = 0.0,
    ) -> None:
        super().__init__(encoders, classes, context)
        self.critic = critic
        self.head_weight, self.feature_weight = head_weight, feature_weight
        self.negatives, self.draws_of_each = negatives, draws
        self.noise, self.decay = noise, decay
        words = [encoders.text.token_ids(name.replace("_", " ")) for name in classes.names]
        rows = torch.stack([encoders.text.embed(ids).mean(dim=0) for ids in words])
        self.register_buffer("head", rows.mean(dim=0), persistent=False)
        frozen = unit(encoders.text.encode(classes.sentences()))
        self.register_buffer("frozen_text", frozen, persistent=False)

    @classmethod
    def resolve_cfg(cls, cfg: CfgNode) -> None:
        """CTX_INIT and N_CTX become what the method makes of them."""
        resolve_words(cfg.TRAINER.INFOPROMPT)

    @classmethod
    def from_cfg(cls, cfg: CfgNode, encoders: Encoders, classes: Classes) -> InfoPromptMethod:
        """From all keys of TRAINER.INFOPROMPT; the critic A starts as torch's Linear does."""
        c = cfg.TRAINER.INFOPROMPT
        start = starting_context(encoders, c.CTX_INIT, c.N_CTX)
        print(f"Initial context: {start.shown}")
        critic = nn.Linear(encoders.text.width, encoders.embed_dim, bias=False)
        return cls(
            *(encoders, classes, Context(start.vectors, start.words), critic),
            *(c.HEAD_WEIGHT, c.FEATURE_WEIGHT, c.HEAD_NEGATIVES, c.FEATURE_DRAWS),
            *(c.NOISE, c.DECAY),
        )

    def drawn(self, generator: torch.Generator | None, progress: float) -> dict[str, torch.Tensor]:
        """A step's negatives and noise, and s."""
        device, vocabulary = self.head.device, self.encoders.text.vocabulary
        shape = (self.draws_of_each, *self.frozen_text.shape)
        tokens = torch.randint(vocabulary, (self.negatives,), generator=generator, device=device)
        noise = self.noise * torch.randn(shape, generator=generator, device=device)
        share = torch.tensor(1 - self.decay * progress, device=device)
        return {"tokens": tokens, "noise": noise, "share": share}

    def features(self, image: torch.Tensor, **known: torch.Tensor) -> Features:
        """The contract's; `more` has what the step drew: `drawn`."""
        own: dict[str, torch.Tensor] = {name: known.pop(name) for name in [*known] if name in DRAWN}
        features = super().features(image, **known)
        features.more.update(own)
        return features

    def losses(self, features: Features, label: torch.Tensor) -> dict[str, torch.Tensor]:
        """CE as "itm", s · .1 L_head as "head", s · .2 L_rep as "features"; label (B,)."""
        more = features.more if "share" in features.more else self.drawn(None, 0.0)
        u = self.context.ctx.mean(dim=0)
        negatives = F.embedding(more["tokens"].long(), self.encoders.text.token_embedding.weight)
        positive = (u @ self.head)[None]
        scale = len(self.head) ** -0.5
        head = first_of(positive * scale, negatives.to(self.head.dtype) @ self.head * scale)
        q = self.critic.weight @ u * len(self.critic.weight) ** -0.5
        others = (self.frozen_text + more["noise"]).flatten(0, 1)
        of_features = first_of(unit(features.text) @ q, others @ q)
        return {
            **super().losses(features, label),
            "head": more["share"] * self.head_weight * head,
            "features": more["share"] * self.feature_weight * of_features,
        }


@TRAINER_REGISTRY.register()
class InfoPrompt(PromptTrainer):
    """InfoPrompt on CLIP; adaptation: ours."""

    method_class = InfoPromptMethod
    config_node = "INFOPROMPT"
    claim = Claim(
        "the start matters less than CoOp's, and training takes fewer epochs",
        (
            Row("InfoPrompt, words", "InfoPrompt"),
            Row("InfoPrompt, N(0, .02²)", "InfoPrompt", {"TRAINER.INFOPROMPT.CTX_INIT": ""}),
        ),
        (FROM_WORDS, FOUR_VECTORS),
        ("starts",),
    )
