"""CoPrompt: Consistency-guided Prompt Learning (Roy and Etemad, ICLR 2024, arXiv 2306.01195).

MaPLe's coupled prompts, an adapter after each tower, and features that stay near the frozen CLIP's
of other words for the class, and of another view of the image:

    f = .1 A_i(f_M) + .9 f_M,   e = .2 A_t(e_M) + .8 e_M,   A(x) = ReLU(W₂ ReLU(W₁ x)), no biases
    L = CE(τ f̂ êᵀ, y) + W [(1 − mean_c cos(e_c, g_c)) + (1 − mean_j cos(f_j, f̃_j))]

f_M (B,D) and e_M (C,D): MaPLe's features; W₁ ∈ R^{D/4×D}. f̃_j: the unprompted tower's features of
a second random view. g_c: the frozen features of one of the class's sentences, each step another:
of S_c sentences that of number ⌊u S_c⌋, u ~ U(0, 1) for all classes alike. DISTILL "mse": mean
squared differences of the normalized features in place of 1 − cos.

The sentences are a language model's. `CoPrompt` reads them for training alone, from the JSON file
of DATASET.SENTENCES, such as its repository has for each data set (gpt_file/). Where there
is none, `CoPromptTemplates` takes OpenAI's 80 ImageNet templates in their place: that is a method
of ours, whose numbers aren't CoPrompt's.

What the public code does otherwise than the paper: whatever its config and command line say, it
sets depth, N_CTX, W and on Food101 the epochs by the data set's name (here: configs of their own,
vit_b16_coprompt/). It writes and never reads a cache of the sentences' features, encodes sentences
of new classes to test on them, and has all F_i but the first start as one. Its classes must have as
many sentences each.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import nn

from clip.open_clip_parts import imagenet_templates
from clip.prompting import Encoders
from dassl.config import CfgNode, declare_checks, public, real, share, whole
from dassl.engine import TRAINER_REGISTRY
from dassl.utils import UserError, check_choice
from tuning.method import Classes, Features, unit
from tuning.prompts import public_words
from tuning.sentences import KEY, encode_sentences, sentences_of
from tuning.trainer import PromptTrainer

from .clip_adapter import Adapter
from .maple import CoupledPrompts, MaPLeMethod

DISTANCES = ("cosine", "mse")


def extend_cfg(cfg: CfgNode) -> None:
    """Declare TRAINER.CoPrompt and the ranges of its values."""
    cfg.TRAINER.CoPrompt = CfgNode()
    cfg.TRAINER.CoPrompt.N_CTX = 2
    cfg.TRAINER.CoPrompt.CTX_INIT = "a photo of a"  # its first N_CTX tokens start P_0
    cfg.TRAINER.CoPrompt.PROMPT_DEPTH = 9
    cfg.TRAINER.CoPrompt.SENTENCES = ""  # another name of DATASET.SENTENCES
    cfg.TRAINER.CoPrompt.W = 1.0
    cfg.TRAINER.CoPrompt.DISTILL = "cosine"  # cosine | mse
    cfg.TRAINER.CoPrompt.IMAGE_RATIO = 0.1
    cfg.TRAINER.CoPrompt.TEXT_RATIO = 0.2
    cfg.TRAINER.CoPrompt.PREC = "fp16"  # fp32, fp16, bf16, amp
    public_words(cfg, "TRAINER.CoPrompt.CTX_INIT")
    public(cfg, "TRAINER.W", "TRAINER.CoPrompt.W")
    public(cfg, "TRAINER.DISTILL", "TRAINER.CoPrompt.DISTILL")
    declare_checks(
        {
            "TRAINER.CoPrompt.N_CTX": whole(1),
            "TRAINER.CoPrompt.W": real(0),
            "TRAINER.CoPrompt.IMAGE_RATIO": share,
            "TRAINER.CoPrompt.TEXT_RATIO": share,
        }
    )


class CoPromptMethod(MaPLeMethod):
    """MaPLe with adapters, and two consistencies.

    Args:
        prompts: MaPLe's.
        sentences: for each class; None: not known here, so it can't be trained.
        weight: W.
        distance: one of `DISTANCES`.
        ratios: the adapters' shares of the image and the text features.
    """

    trained_modules: tuple[str, ...] = ("prompts", "adapters")
    views_wanted = 2
    sees: tuple[str, ...] = ("language_model_text",)
    sentences_for = "training"
    needs_files: tuple[str, ...] = (KEY,)
    references: tuple[torch.Tensor, torch.Tensor] | None = None  # see `_encoded`

    def __init__(
        self,
        encoders: Encoders,
        classes: Classes,
        prompts: CoupledPrompts,
        sentences: Sequence[Sequence[str]] | None,
        weight: float = 1.0,
        distance: str = "cosine",
        ratios: tuple[float, float] = (0.1, 0.2),
    ) -> None:
        super().__init__(encoders, classes, prompts)
        adapters = {name: Adapter(encoders.embed_dim) for name in ("image", "text")}
        self.adapters = nn.ModuleDict(adapters)
        self.sentences = sentences
        self.weight, self.distance = weight, distance
        self.ratios = dict(zip(adapters, ratios, strict=True))

    @classmethod
    def resolve_cfg(cls, cfg: CfgNode) -> None:
        """TRAINER.CoPrompt.SENTENCES is DATASET.SENTENCES. Raises UserError if they differ."""
        c, given = cfg.TRAINER.CoPrompt, cfg.DATASET.SENTENCES
        if not c.SENTENCES:
            return
        if given not in ("", c.SENTENCES):
            raise UserError(f"{KEY} is {given}, TRAINER.CoPrompt.SENTENCES {c.SENTENCES}: give one")
        cfg.DATASET.SENTENCES, c.SENTENCES = c.SENTENCES, ""

    @classmethod
    def own_sentences(cls, classes: Classes) -> list[list[str]] | None:
        """Those of DATASET.SENTENCES for each class; None where it names no file."""
        return sentences_of(classes)

    @classmethod
    def from_cfg(cls, cfg: CfgNode, encoders: Encoders, classes: Classes) -> CoPromptMethod:
        """From all keys of TRAINER.CoPrompt.

        Raises:
            UserError: the image tower is a ResNet, the depth isn't among the towers' layers, or
                the distance is unknown.
        """
        c = cfg.TRAINER.CoPrompt
        check_choice("TRAINER.CoPrompt.DISTILL", c.DISTILL, DISTANCES)
        return cls(
            encoders,
            classes,
            CoupledPrompts.from_cfg(cfg, "CoPrompt", encoders),
            cls.own_sentences(classes),
            c.W,
            c.DISTILL,
            (c.IMAGE_RATIO, c.TEXT_RATIO),
        )

    def train(self, mode: bool = True) -> CoPromptMethod:
        """As PyTorch's; going into training it encodes the sentences. Raises as `_encoded`."""
        super().train(mode)
        if mode:
            self._encoded()
        return self

    def _encoded(self) -> tuple[torch.Tensor, torch.Tensor]:
        """All sentences' g (n,D), normalized, and the classes' counts (C,); for training alone.

        Raises:
            UserError: there are none, or one is too long.
        """
        if self.references is None:
            if self.sentences is None:
                raise UserError(
                    f"{KEY} must name a JSON file with sentences of each of the "
                    f"{len(self.layout)} classes; the trainer CoPromptTemplates needs none"
                )
            encoded, count = encode_sentences(self.encoders, self.sentences)
            self.references = unit(encoded), count
        return self.references

    def drawn(self, generator: torch.Generator | None, progress: float) -> dict[str, torch.Tensor]:
        """A step's u, ()."""
        device = self.encoders.logit_scale.device
        return {"place": torch.rand((), generator=generator, device=device)}

    def _adapted(self, kind: str, x: torch.Tensor) -> torch.Tensor:
        """Features of a tower (…,D), with its adapter's share; at least fp32."""
        x = x.to(torch.promote_types(x.dtype, torch.float32))
        ratio = self.ratios[kind]
        return ratio * self.adapters[kind](x) + (1 - ratio) * x

    def encode_text(self) -> torch.Tensor:
        """e, (C,D)."""
        return self._adapted("text", super().encode_text())

    def encode_image(self, image: torch.Tensor) -> torch.Tensor:
        """(B,3,I,I) → f (B,D)."""
        return self._adapted("image", super().encode_image(image))

    def features(
        self,
        image: torch.Tensor,
        other_views: torch.Tensor | None = None,
        place: torch.Tensor | None = None,
        **known: torch.Tensor,
    ) -> Features:
        """Image (B,3,I,I) → f (B,D), e (C,D); in training also f̃ (B,D) and g (C,D)."""
        features = super().features(image, **known)
        if self.training:
            # Called without a second view or a draw: the same view, the first sentences.
            other = image if other_views is None else other_views[0]
            place = torch.zeros((), device=other.device) if place is None else place
            features.more["frozen_image"] = self.encoders.image(other)
            references, count = self._encoded()
            number = torch.minimum((place * count).long(), count - 1)
            features.more["sentences"] = references[count.cumsum(0) - count + number]
        return features

    def losses(self, features: Features, label: torch.Tensor) -> dict[str, torch.Tensor]:
        """CE as "itm", the consistencies as "text" and "image"; label (B,)."""
        text = self._distance(features.text, features.more["sentences"])
        image = self._distance(features.image, features.more["frozen_image"])
        losses = super().losses(features, label)
        return {**losses, "text": self.weight * text, "image": self.weight * image}

    def _distance(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """Of rows (n,D)."""
        x, y = unit(x), unit(y)
        return F.mse_loss(x, y) if self.distance == "mse" else 1 - (x * y).sum(dim=-1).mean()


class CoPromptTemplatesMethod(CoPromptMethod):
    """CoPrompt with hand-written templates in place of a language model's sentences."""

    sees = ()
    needs_files = ()
    sentences_for = ""

    @classmethod
    def resolve_cfg(cls, cfg: CfgNode) -> None:
        """Whatever file the config names, it isn't read."""

    @classmethod
    def own_sentences(cls, classes: Classes) -> list[list[str]]:
        """80 of each class."""
        filled = [classes.sentences(template) for template in imagenet_templates()]
        return [list(each) for each in zip(*filled, strict=True)]


@TRAINER_REGISTRY.register()
class CoPrompt(PromptTrainer):
    """Consistency-guided prompt learning."""

    method_class = CoPromptMethod
    config_node = "CoPrompt"
    model_name = "MultiModalPromptLearner"


@TRAINER_REGISTRY.register()
class CoPromptTemplates(PromptTrainer):
    """CoPrompt without a language model's sentences; ours."""

    method_class = CoPromptTemplatesMethod
    config_node = "CoPrompt"
    model_name = "MultiModalPromptLearner"
