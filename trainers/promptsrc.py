"""PromptSRC: Self-regulating Prompts (Khattak et al., ICCV 2023, arXiv 2307.06948).

Independent deep prompts in both towers, kept near the frozen CLIP's features and predictions, and
averaged over the epochs with Gaussian weights.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import reduce

import torch
import torch.nn.functional as F
from torch import nn

from clip.open_clip_parts import imagenet_templates
from clip.prompting import Encoders
from dassl.config import CfgNode, declare_checks, public, real, whole
from dassl.engine import TRAINER_REGISTRY
from tuning.method import Classes, Features, Method, unit
from tuning.prompts import (
    VisionPrompts,
    check_depth,
    deep_prompts,
    public_words,
    stacked,
    starting_context,
)
from tuning.sentences import mean_of_sentences
from tuning.trainer import PromptTrainer

_TEMPLATES = 60  # the first of OpenAI's 80 ImageNet templates
# The options of PromptSRC's prompts without its losses, in MaPLe's and PromptSRC's code.
_IVLP = (
    *("N_CTX_VISION", "N_CTX_TEXT", "CTX_INIT", "PREC"),
    *("PROMPT_DEPTH_VISION", "PROMPT_DEPTH_TEXT"),
)


def extend_cfg(cfg: CfgNode) -> None:
    """Declare TRAINER.PROMPTSRC and the ranges of its values."""
    cfg.TRAINER.PROMPTSRC = CfgNode()
    cfg.TRAINER.PROMPTSRC.N_CTX_VISION = 4
    cfg.TRAINER.PROMPTSRC.N_CTX_TEXT = 4
    cfg.TRAINER.PROMPTSRC.CTX_INIT = "a photo of a"  # its first N_CTX_TEXT tokens start
    cfg.TRAINER.PROMPTSRC.PROMPT_DEPTH_VISION = 9
    cfg.TRAINER.PROMPTSRC.PROMPT_DEPTH_TEXT = 9
    cfg.TRAINER.PROMPTSRC.TEXT_LOSS_WEIGHT = 25.0
    cfg.TRAINER.PROMPTSRC.IMAGE_LOSS_WEIGHT = 10.0
    cfg.TRAINER.PROMPTSRC.GPA_MEAN = 15.0  # μ of the Gaussian aggregation, in epochs
    cfg.TRAINER.PROMPTSRC.GPA_STD = 1.0  # σ
    cfg.TRAINER.PROMPTSRC.PREC = "fp16"  # fp32, fp16, bf16, amp
    public_words(cfg, "TRAINER.PROMPTSRC.CTX_INIT")
    for key in _IVLP:
        public(cfg, f"TRAINER.IVLP.{key}", None, "only the trainer IVLP reads it, which isn't here")
    declare_checks(
        {
            "TRAINER.PROMPTSRC.N_CTX_VISION": whole(1),
            "TRAINER.PROMPTSRC.N_CTX_TEXT": whole(1),
            "TRAINER.PROMPTSRC.TEXT_LOSS_WEIGHT": real(0),
            "TRAINER.PROMPTSRC.IMAGE_LOSS_WEIGHT": real(0),
            "TRAINER.PROMPTSRC.GPA_STD": real(above=0),
        }
    )


class IndependentPrompts(nn.Module):
    """Text: ctx (M,d_t), deep (J−1 of (M,d_t)); image: `vision`.

    words: token ids of the frozen words after the context.
    """

    def __init__(
        self, initial: torch.Tensor, depth: int, vision: VisionPrompts, words: Sequence[int] = ()
    ) -> None:
        super().__init__()
        self.words = words
        self.ctx = nn.Parameter(initial)
        self.deep = deep_prompts(depth, *initial.shape)
        self.vision = vision

    @classmethod
    def from_cfg(cls, cfg: CfgNode, node: str, encoders: Encoders) -> IndependentPrompts:
        """From N_CTX_*, CTX_INIT and PROMPT_DEPTH_* of TRAINER.<node>.

        Raises:
            UserError: the image tower is a ResNet, or a depth isn't among its tower's layers.
        """
        c = cfg.TRAINER[node]
        vision_width = encoders.image.width
        for key, depth, layers in (
            ("PROMPT_DEPTH_VISION", c.PROMPT_DEPTH_VISION, encoders.image.layers),
            ("PROMPT_DEPTH_TEXT", c.PROMPT_DEPTH_TEXT, encoders.text.layers),
        ):
            check_depth(f"TRAINER.{node}.{key}", depth, layers)
        start = starting_context(encoders, c.CTX_INIT, c.N_CTX_TEXT, vectors=c.N_CTX_TEXT)
        print(f"Initial context: {start.shown}")
        vision = VisionPrompts(c.N_CTX_VISION, c.PROMPT_DEPTH_VISION, vision_width)
        return cls(start.vectors, c.PROMPT_DEPTH_TEXT, vision, start.words)

    def text(self) -> tuple[torch.Tensor, torch.Tensor | None]:
        """→ (M,d_t) and (J−1,M,d_t)."""
        return self.ctx, stacked(self.deep)


class PromptSRCMethod(Method):
    """L = L_ITM + w_t·mean|ê − ẽ| + w_i·mean|f̂ − f̃| + Σ p̃ (log p̃ − log p) / (B·C).

    ẽ, f̃ and p̃ are the frozen CLIP's text features, image features of the same view, predictions.

    Args:
        frozen_text: (C,D), ẽ before normalization.
        text_weight, image_weight: w_t, w_i.
    """

    trained_modules = ("prompts",)
    prompt_modules = ("prompts",)
    sentences_for = "training"
    frozen_text: torch.Tensor
    image_tower_untouched = False
    compares_with_frozen_image = True

    def __init__(
        self,
        encoders: Encoders,
        classes: Classes,
        prompts: IndependentPrompts,
        frozen_text: torch.Tensor,
        text_weight: float = 25.0,
        image_weight: float = 10.0,
    ) -> None:
        super().__init__(encoders, classes)
        self.prompts = prompts
        self.words = prompts.words
        self.layout = encoders.text.layout(classes.names, len(prompts.ctx), words=prompts.words)
        self.register_buffer("frozen_text", unit(frozen_text), persistent=False)
        self.text_weight = text_weight
        self.image_weight = image_weight

    @classmethod
    def from_cfg(cls, cfg: CfgNode, encoders: Encoders, classes: Classes) -> PromptSRCMethod:
        """From all keys of TRAINER.PROMPTSRC but GPA_*; ẽ is `mean_text_features`.

        Raises:
            UserError: the image tower is a ResNet, or a depth isn't among its tower's layers.
        """
        c = cfg.TRAINER.PROMPTSRC
        return cls(
            encoders,
            classes,
            IndependentPrompts.from_cfg(cfg, "PROMPTSRC", encoders),
            mean_text_features(encoders, classes),
            c.TEXT_LOSS_WEIGHT,
            c.IMAGE_LOSS_WEIGHT,
        )

    def encode_text(self) -> torch.Tensor:
        """(C,D), under the text tower's prompts."""
        return self.encoders.text(self.layout, *self.prompts.text())

    def encode_image(self, image: torch.Tensor) -> torch.Tensor:
        """(B,3,I,I) → (B,D), under the image tower's prompts."""
        return self.encoders.image(image, *self.prompts.vision())

    def features(
        self, image: torch.Tensor, frozen_image: torch.Tensor | None = None, **known: torch.Tensor
    ) -> Features:
        """Image (B,3,I,I) → (B,D) and (C,D); in training also f̃ (B,D), `frozen_image` if given."""
        features = super().features(image, **known)
        if self.training:
            if frozen_image is None:
                frozen_image = self.encoders.image(image)
            features.more["frozen_image"] = frozen_image
        return features

    def distances(self, features: Features) -> dict[str, torch.Tensor]:
        """w_t·mean|ê − ẽ| as "text" and w_i·mean|f̂ − f̃| as "image"."""
        text = unit(features.text) - self.frozen_text
        image = unit(features.image) - unit(features.more["frozen_image"])
        return {
            "text": self.text_weight * text.abs().mean(),
            "image": self.image_weight * image.abs().mean(),
        }

    def losses(self, features: Features, label: torch.Tensor) -> dict[str, torch.Tensor]:
        """The class's L, by its terms: "itm", "text", "image", "kl"; label (B,)."""
        logits = self.itm_logits(features)
        frozen_image = unit(features.more["frozen_image"])
        frozen_logits = self.encoders.temperature * frozen_image @ self.frozen_text.t()
        divergence = F.kl_div(
            logits.log_softmax(dim=-1),
            frozen_logits.log_softmax(dim=-1),
            reduction="sum",
            log_target=True,
        )
        return {
            "itm": F.cross_entropy(logits, label),
            **self.distances(features),
            "kl": divergence / logits.numel(),
        }


def mean_text_features(
    encoders: Encoders, classes: Classes, templates: Sequence[str] = ()
) -> torch.Tensor:
    """(C,D): the mean over templates of the un-normalized frozen text features, at least fp32.

    Of classes that have sentences of their own, the mean over these.

    templates: by default the 60 of PromptSRC's code.
    """
    described = mean_of_sentences(encoders, classes, normalized=False)
    if described is not None:
        return described
    templates = templates or imagenet_templates()[:_TEMPLATES]
    each = (encoders.text.encode(classes.sentences(template)) for template in templates)
    total = reduce(torch.add, (e.to(torch.promote_types(e.dtype, torch.float32)) for e in each))
    return total / len(templates)


def gaussian_weights(epochs: int, mean: float, std: float) -> list[float]:
    """w_e ∝ N(e; μ, σ²) for e = 1 … epochs, of sum 1."""
    # Relative to the largest exponent, so that a far-off mean doesn't underflow to all zeros.
    exponents = [-0.5 * ((e - mean) / std) ** 2 for e in range(1, epochs + 1)]
    weights = [math.exp(x - max(exponents)) for x in exponents]
    return [w / sum(weights) for w in weights]


@TRAINER_REGISTRY.register()
class PromptSRC(PromptTrainer):
    """Self-regulating prompts; after the last epoch the model is Σ w_e θ_e over its epochs."""

    method_class = PromptSRCMethod
    config_node = "PROMPTSRC"
    model_name = "VLPromptLearner"
    usual_config = "vit_b16_ep20"

    def build_model(self) -> None:
        """As every trainer's; the aggregate Σ w_e θ_e starts empty."""
        self.aggregate: dict[str, torch.Tensor] = {}
        super().build_model()

    def after_epoch(self) -> None:
        """Add w_e θ_e; after the last epoch the method takes the sum, before it is saved."""
        c = self.method_cfg(self.cfg)
        weight = gaussian_weights(self.max_epoch, c.GPA_MEAN, c.GPA_STD)[self.epoch]
        for name, value in self.method.trained_state().items():
            # In fp64: a sum over many epochs shouldn't round more than one of them.
            self.aggregate[name] = self.aggregate.get(name, 0) + weight * value.double()
        if self.epoch + 1 == self.max_epoch:
            print("Taking the Gaussian-weighted mean of all epochs")
            self.method.load_trained(self.aggregate, self.method.classes.keys)
        super().after_epoch()

    def checkpoint_extra(self) -> dict:
        """As every trainer's, and "aggregate": the sum so far, fp64."""
        return {**super().checkpoint_extra(), "aggregate": self.aggregate}

    def load_checkpoint_extra(self, extra: dict) -> None:
        """Take the sum back.

        Raises:
            ValueError: a shape in it isn't this run's.
        """
        super().load_checkpoint_extra(extra)
        own, names = self.method.trained(), self.method.names()
        aggregate = {names[name]: value for name, value in extra["aggregate"].items()}
        for name, value in aggregate.items():
            if value.shape != own[name].shape:
                raise ValueError(f"its mean of {name} has the shape {tuple(value.shape)}")
        self.aggregate = {name: value.to(self.device) for name, value in aggregate.items()}
