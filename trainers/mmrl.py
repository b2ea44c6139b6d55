"""MMRL: Multi-Modal Representation Learning (Guo and Gu, CVPR 2025, arXiv 2503.08497).

A space of its own, R ∈ R^{n×d}, is mapped into the upper layers of both towers: before each layer j
of LAYERS the n representation tokens stand behind SOS and behind the class token,

    text R A_jᵗ + b_jᵗ (n,d_t),   image R A_jᵛ + b_jᵛ (n,d_v),

put in before the first of the layers and in place of the last ones before the others. The image
has two features: f (D) of the class token, as always, and of the representation tokens

    r = P_rᵀ · mean_k ln_post(token_k) (D),   P_r ∈ R^{d_v×D} trained.

With z_f = 100 f̂ êᵀ and z_r = 100 r̂ êᵀ, f̃ and ẽ the frozen CLIP's features of the same view and
text,

    L = α CE(z_f, y) + (1−α) CE(z_r, y) + λ (1 − mean cos(f, f̃)) + λ (1 − mean cos(e, ẽ)).

What is learned about the trained classes shall gather in r and leave f general: tests on trained
classes take α z_f + (1−α) z_r, on others z_f alone. n 5, d 512, layers 6 … 12 (counted from 1),
α .7. R starts from N(0, .02²), P_r from N(0, 1/d_v), the maps of all layers from one draw of
torch's own. The text is the data set's own template; 100 stands for τ.

One λ for all data sets, 1, is the default here. What the public code does otherwise: it takes λ by
the data set's name, from .01 to 7, and a d of 2048 for EuroSAT, whatever its config says; those are
configs/trainers/MMRL/vit_b16_published*. It decides by names of tasks and data sets which logits
are tested; here it is by the identity of the classes, so a model of ImageNet takes both on
ImageNet's variants, whose classes it was trained on. It tests the last file that its folder happens
to list.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import nn

from clip.prompting import Change, Encoders, Read, Reads, Tokens
from dassl.config import CfgNode, Check, declare_checks, public, real, whole
from dassl.engine import TRAINER_REGISTRY
from dassl.utils import UserError
from tuning.method import Classes, Features, Method, cosine_logits, unit
from tuning.saved import ASSUMED, untrained_classes
from tuning.templates import template_layout
from tuning.trainer import PromptTrainer

TEMPERATURE = 100.0  # the code's, whatever CLIP's own
SHARE = Check("a share from 0 to 1", lambda x: 0 <= x <= 1)


def declare(cfg: CfgNode, name: str) -> CfgNode:
    """Declare what MMRL and MMRL++ have in common as TRAINER.<name>, by the public code's names."""
    node = cfg.TRAINER[name] = CfgNode()
    node.ALPHA = 0.7  # α
    node.REG_WEIGHT = 1.0  # λ
    node.N_REP_TOKENS = 5  # n
    node.REP_LAYERS = (6, 7, 8, 9, 10, 11, 12)  # counted from 1
    node.REP_DIM = 512  # d
    node.PREC = "fp16"  # fp32, fp16, bf16, amp
    declare_checks({f"TRAINER.{name}.{key}": whole(1) for key in ("N_REP_TOKENS", "REP_DIM")})
    declare_checks({f"TRAINER.{name}.ALPHA": SHARE, f"TRAINER.{name}.REG_WEIGHT": real(0)})
    return node


def extend_cfg(cfg: CfgNode) -> None:
    """Declare TRAINER.MMRL, and the task that its scripts name."""
    declare(cfg, "MMRL")
    public(cfg, "TASK", None, "which logits are tested is told by the classes")


class Representation(nn.Module):
    """R, its maps into the towers, and P_r, under the public code's names.

    Args:
        tokens: n.
        dim: d.
        layers: how many layers R is mapped to.
        widths: d_t and d_v.
        embed_dim: D.
    """

    def __init__(
        self, tokens: int, dim: int, layers: int, widths: tuple[int, int], embed_dim: int
    ) -> None:
        super().__init__()
        self.compound_rep_tokens = nn.Parameter(torch.randn(tokens, dim) * 0.02)
        of_text, of_image = (nn.Linear(dim, width) for width in widths)
        self.compound_rep_tokens_r2tproj = _copies(of_text, layers)
        self.compound_rep_tokens_r2vproj = _copies(of_image, layers)
        self.proj_rep = nn.Parameter(torch.randn(widths[1], embed_dim) * widths[1] ** -0.5)

    def text(self) -> list[torch.Tensor]:
        """The tokens (n,d_t) of each layer."""
        return [project(self.compound_rep_tokens) for project in self.compound_rep_tokens_r2tproj]

    def image(self) -> list[torch.Tensor]:
        """The tokens (n,d_v) of each layer."""
        return [project(self.compound_rep_tokens) for project in self.compound_rep_tokens_r2vproj]

    def projection(self, frozen: torch.Tensor) -> torch.Tensor:
        """P_r (d_v,D); frozen: CLIP's own projection of the class token."""
        return self.proj_rep


def _copies(module: nn.Module, n: int) -> nn.ModuleList:
    return nn.ModuleList(copy.deepcopy(module) for _ in range(n))


def check_layers(key: str, layers: Sequence[int], last: int) -> None:
    """Raise UserError unless they rise from 1 at least to `last` at most."""
    rising = all(a < b for a, b in pairwise(layers))
    if not layers or not rising or layers[0] < 1 or layers[-1] > last:
        shown = ", ".join(map(str, layers)) or "none"
        raise UserError(f"{key} is {shown}; the towers have 1 to {last}: name some, rising")


class MMRLMethod(Method):
    """Both towers with representation tokens, and two image features.

    Its features have "rep" (B,D), r, and in training "frozen_image" (B,D), f̃.

    Args:
        learner: R, its maps, P_r.
        layers: where they go, counted from 1, rising.
        alpha: α.
        weight: λ.
        keep: what share of a token's old value stays where it is replaced.
    """

    trained_modules = ("learner",)
    label_fit = ("itm", "rep")
    image_tower_untouched = False
    compares_with_frozen_image = True
    template_name = "zeroshot"
    node = "MMRL"  # of its config, under TRAINER
    frozen_text: torch.Tensor

    def __init__(
        self,
        encoders: Encoders,
        classes: Classes,
        learner: Representation,
        layers: Sequence[int],
        alpha: float = 0.7,
        weight: float = 1.0,
        keep: float = 0.0,
    ) -> None:
        super().__init__(encoders, classes)
        self.learner = learner
        self.layers, self.keep = tuple(layers), keep
        self.alpha, self.weight = alpha, weight
        self.layout = template_layout(encoders.text, classes)
        frozen = unit(encoders.text.encode(classes.sentences()))
        self.register_buffer("frozen_text", frozen, persistent=False)
        # Whether this run's classes are among those it was trained on.
        self.trained_classes = True

    @classmethod
    def from_cfg(cls, cfg: CfgNode, encoders: Encoders, classes: Classes) -> MMRLMethod:
        """From all keys of its node.

        Raises:
            UserError: the image tower is a ResNet, or there are no such layers in both towers.
        """
        c = cfg.TRAINER[cls.node]
        widths = encoders.text.width, encoders.image.width
        last = min(encoders.text.layers, encoders.image.layers)
        check_layers(f"TRAINER.{cls.node}.REP_LAYERS", c.REP_LAYERS, last)
        print(f"Prompt: {classes.template}")
        shown = ", ".join(map(str, c.REP_LAYERS))
        print(f"Representation tokens: {c.N_REP_TOKENS} before layers {shown} of both towers")
        learner = cls.learner_of(c, widths, encoders.embed_dim)
        return cls(encoders, classes, learner, c.REP_LAYERS, c.ALPHA, c.REG_WEIGHT, cls.kept(c))

    @staticmethod
    def learner_of(c: CfgNode, widths: tuple[int, int], embed_dim: int) -> Representation:
        """What is trained."""
        return Representation(c.N_REP_TOKENS, c.REP_DIM, len(c.REP_LAYERS), widths, embed_dim)

    @staticmethod
    def kept(c: CfgNode) -> float:
        """What share of a token's old value stays."""
        return 0.0

    def _tokens(self, vectors: Iterable[torch.Tensor]) -> list[Tokens]:
        first = self.layers[0]
        return [
            Tokens(
                *(layer - 1, (1 - self.keep * (layer > first)) * v),
                insert=layer == first,
                normed=layer == 1,
                keep=self.keep * (layer > first),
            )
            for layer, v in zip(self.layers, vectors, strict=True)
        ]

    def encode_text(self) -> torch.Tensor:
        """(C,D): e."""
        features = self.text_of(self.layout, self._tokens(self.learner.text()))
        assert isinstance(features, torch.Tensor)
        return features

    def image_changes(self) -> Sequence[Change]:
        """The representation tokens."""
        return self._tokens(self.learner.image())

    def image_reads(self) -> Reads:
        """What became of them."""
        return {"rep": Read(at=slice(1, 1 + len(self.learner.compound_rep_tokens)))}

    def features(
        self, image: torch.Tensor, frozen_image: torch.Tensor | None = None, **known: torch.Tensor
    ) -> Features:
        """As `Method.features`, with r (B,D) and in training f̃ (B,D), `frozen_image` if given."""
        features = super().features(image, **known)
        projection = self.learner.projection(self.encoders.image.vit.proj)
        tokens = features.more["rep"].to(projection.dtype)  # (B,n,d_v)
        features.more["rep"] = tokens.mean(dim=1) @ projection
        if self.training:
            if frozen_image is None:
                frozen_image = self._frozen(image)
            features.more["frozen_image"] = frozen_image
        return features

    @torch.no_grad()
    def _frozen(self, image: torch.Tensor) -> torch.Tensor:
        """f̃ (B,D) of images, or of their tokens before the first layer."""
        encoder = self.encoders.image
        if image.dim() == 3:
            features = encoder.above(image, self.layers[0] - 1)
        else:
            features = encoder(image)
        assert isinstance(features, torch.Tensor)
        return features

    def itm_logits(self, features: Features) -> torch.Tensor:
        """z_f, (B,C)."""
        return cosine_logits(features.image, features.text, TEMPERATURE)

    def rep_logits(self, features: Features) -> torch.Tensor:
        """z_r, (B,C)."""
        return cosine_logits(features.more["rep"], features.text, TEMPERATURE)

    def losses(self, features: Features, label: torch.Tensor) -> dict[str, torch.Tensor]:
        """The terms of L: "itm" and "rep" fit the labels, "image" and "text" hold; label (B,)."""
        image = F.cosine_similarity(unit(features.image), unit(features.more["frozen_image"]))
        text = F.cosine_similarity(unit(features.text), self.frozen_text)
        return {
            "itm": self.alpha * F.cross_entropy(self.itm_logits(features), label),
            "rep": (1 - self.alpha) * F.cross_entropy(self.rep_logits(features), label),
            "image": self.weight * (1 - image.mean()),
            "text": self.weight * (1 - text.mean()),
        }

    def logits(self, features: Features) -> torch.Tensor:
        """(B,C): α z_f + (1−α) z_r of classes that it was trained on, z_f of others."""
        itm = self.itm_logits(features)
        if not self.trained_classes:
            return itm
        return self.alpha * itm + (1 - self.alpha) * self.rep_logits(features)

    def load_trained(
        self, state: dict[str, torch.Tensor], keys: Sequence[str] | None, partial: bool = False
    ) -> list[str]:
        """As `Method.load_trained`; the classes' identity tells which logits are tested."""
        taken = super().load_trained(state, keys, partial)
        self.left_out = ""
        if keys is None and not partial:
            print(f"The classes that the representation tokens know are {ASSUMED}")
        elif not partial and (why := untrained_classes(self.classes.keys, keys or ())):
            self.left_out = f"The representation tokens' logits are left out: {why}"
            print(self.left_out)
        self.trained_classes = not self.left_out
        return taken


@TRAINER_REGISTRY.register()
class MMRL(PromptTrainer):
    """Multi-Modal Representation Learning."""

    method_class = MMRLMethod
    config_node = "MMRL"
    model_name = "MultiModalRepresentationLearner"
