"""VPT: Visual Prompt Tuning (Jia et al., ECCV 2022, arXiv 2203.12119), on CLIP.

Prompts enter the image tower and are replaced at every prompted layer; the text is frozen.
"""

from __future__ import annotations

import torch
from torch import nn

from clip.prompting import Encoders
from dassl.config import CfgNode, declare_checks, whole
from dassl.engine import TRAINER_REGISTRY
from tuning.method import Classes, Method
from tuning.prompts import VisionPrompts, check_depth, public_words, template_of
from tuning.trainer import PromptTrainer


def extend_cfg(cfg: CfgNode) -> None:
    """Declare TRAINER.VPT and the ranges of its values."""
    cfg.TRAINER.VPT = CfgNode()
    cfg.TRAINER.VPT.N_CTX_VISION = 8  # N, prompts per layer
    cfg.TRAINER.VPT.PROMPT_DEPTH_VISION = 12  # J; 1 is VPT-shallow
    cfg.TRAINER.VPT.CTX_INIT = "a photo of a"  # the frozen words before the class name
    cfg.TRAINER.VPT.PREC = "fp16"  # fp32, fp16, bf16, amp
    public_words(cfg, "TRAINER.VPT.CTX_INIT")
    declare_checks({"TRAINER.VPT.N_CTX_VISION": whole(1)})


class VPTMethod(Method):
    """Prompted image features and frozen text features.

    Args:
        vision: the prompts to learn.
        frozen_text: (C,D).
    """

    trained_modules = ("prompts",)
    frozen_text: torch.Tensor
    image_tower_untouched = False

    def __init__(
        self,
        encoders: Encoders,
        classes: Classes,
        vision: VisionPrompts,
        frozen_text: torch.Tensor,
    ) -> None:
        super().__init__(encoders, classes)
        self.prompts = nn.ModuleDict({"vision": vision})
        self.register_buffer("frozen_text", frozen_text, persistent=False)

    @classmethod
    def from_cfg(cls, cfg: CfgNode, encoders: Encoders, classes: Classes) -> VPTMethod:
        """From N_CTX_VISION, PROMPT_DEPTH_VISION and CTX_INIT.

        Raises:
            UserError: the image tower is a ResNet, or J isn't among its layers.
        """
        c = cfg.TRAINER.VPT
        vision_width = encoders.image.width
        check_depth("TRAINER.VPT.PROMPT_DEPTH_VISION", c.PROMPT_DEPTH_VISION, encoders.image.layers)
        template = template_of(c.CTX_INIT)
        print(f"Prompt: {template}")
        vision = VisionPrompts(c.N_CTX_VISION, c.PROMPT_DEPTH_VISION, vision_width)
        return cls(encoders, classes, vision, encoders.text.encode(classes.sentences(template)))

    def encode_text(self) -> torch.Tensor:
        """(C,D), the frozen features."""
        return self.frozen_text

    def encode_image(self, image: torch.Tensor) -> torch.Tensor:
        """(B,3,I,I) → (B,D), under J layers of N prompts each."""
        return self.encoders.image(image, *self.prompts["vision"]())


@TRAINER_REGISTRY.register()
class VPT(PromptTrainer):
    """Visual Prompt Tuning on CLIP."""

    method_class = VPTMethod
    config_node = "VPT"
