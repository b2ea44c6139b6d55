"""MaPLe: Multi-modal Prompt Learning (Khattak et al., CVPR 2023, arXiv 2210.03117).

The sentence is "a photo of a {name}.", with the vectors P_0 in place of its first words; the other
words stay: [SOS][P_0][of][a][name][.][EOT]. Deeper prompts P_1 … P_{J−1} each replace the previous
layer's, and at the same layers of the image tower stand the prompts F_i(P_i), with one linear map
F_i per layer.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from clip.prompting import Encoders
from dassl.config import CfgNode, declare_checks, whole
from dassl.engine import TRAINER_REGISTRY
from tuning.method import Classes, Method
from tuning.prompts import check_depth, deep_prompts, public_words, stacked, starting_context
from tuning.trainer import PromptTrainer


def extend_cfg(cfg: CfgNode) -> None:
    """Declare TRAINER.MAPLE and the ranges of its values."""
    cfg.TRAINER.MAPLE = CfgNode()
    cfg.TRAINER.MAPLE.N_CTX = 2  # M, the prompts per layer
    cfg.TRAINER.MAPLE.CTX_INIT = "a photo of a"  # its first N_CTX tokens start P_0, the rest stays
    cfg.TRAINER.MAPLE.PROMPT_DEPTH = 9  # J
    cfg.TRAINER.MAPLE.PREC = "fp16"  # fp32, fp16, bf16, amp
    public_words(cfg, "TRAINER.MAPLE.CTX_INIT")
    declare_checks({"TRAINER.MAPLE.N_CTX": whole(1)})


class CoupledPrompts(nn.Module):
    """P_0 = ctx (M,d_t), P_1 … P_{J−1} = deep, F_0 … F_{J−1} = projections.

    words: token ids of the frozen words after P_0.
    """

    def __init__(
        self, initial: torch.Tensor, depth: int, vision_width: int, words: Sequence[int] = ()
    ) -> None:
        super().__init__()
        self.words = words
        n, width = initial.shape
        self.ctx = nn.Parameter(initial)
        self.deep = deep_prompts(depth, n, width)
        self.projections = nn.ModuleList(nn.Linear(width, vision_width) for _ in range(depth))

    @classmethod
    def from_cfg(cls, cfg: CfgNode, node: str, encoders: Encoders) -> CoupledPrompts:
        """From N_CTX, CTX_INIT and PROMPT_DEPTH of TRAINER.<node>.

        Raises:
            UserError: the image tower is a ResNet, or J isn't among the towers' layers.
        """
        c = cfg.TRAINER[node]
        vision_width = encoders.image.width
        layers = min(encoders.text.layers, encoders.image.layers)
        check_depth(f"TRAINER.{node}.PROMPT_DEPTH", c.PROMPT_DEPTH, layers)
        start = starting_context(encoders, c.CTX_INIT, c.N_CTX, vectors=c.N_CTX)
        print(f"Initial context: {start.shown}")
        return cls(start.vectors, c.PROMPT_DEPTH, vision_width, start.words)

    def text(self) -> tuple[torch.Tensor, torch.Tensor | None]:
        """→ (M,d_t) and (J−1,M,d_t)."""
        return self.ctx, stacked(self.deep)

    def vision(self) -> tuple[torch.Tensor, torch.Tensor | None]:
        """→ (M,d_v) and (J−1,M,d_v)."""
        first, *deep = (
            project(p) for project, p in zip(self.projections, (self.ctx, *self.deep), strict=True)
        )
        return first, stacked(deep)


class MaPLeMethod(Method):
    """Both towers under coupled prompts."""

    trained_modules: tuple[str, ...] = ("prompts",)
    prompt_modules = ("prompts",)
    image_tower_untouched = False

    def __init__(self, encoders: Encoders, classes: Classes, prompts: CoupledPrompts) -> None:
        super().__init__(encoders, classes)
        self.prompts = prompts
        self.words = prompts.words
        self.layout = encoders.text.layout(classes.names, len(prompts.ctx), words=prompts.words)

    @classmethod
    def from_cfg(cls, cfg: CfgNode, encoders: Encoders, classes: Classes) -> MaPLeMethod:
        """From N_CTX, CTX_INIT and PROMPT_DEPTH.

        Raises:
            UserError: the image tower is a ResNet, or J isn't among the towers' layers.
        """
        return cls(encoders, classes, CoupledPrompts.from_cfg(cfg, "MAPLE", encoders))

    def encode_text(self) -> torch.Tensor:
        """(C,D), under P_0 … P_{J−1}."""
        return self.encoders.text(self.layout, *self.prompts.text())

    def encode_image(self, image: torch.Tensor) -> torch.Tensor:
        """(B,3,I,I) → (B,D), under F_0(P_0) … F_{J−1}(P_{J−1})."""
        return self.encoders.image(image, *self.prompts.vision())


@TRAINER_REGISTRY.register()
class MaPLe(PromptTrainer):
    """Multi-modal Prompt Learning."""

    method_class = MaPLeMethod
    config_node = "MAPLE"
    model_name = "MultiModalPromptLearner"
