"""TaskRes: task residual tuning (Yu et al., CVPR 2023, arXiv 2211.10277).

The classifier is the frozen text features plus a residual per class, learned apart from them:

    w_c = e_c + α x_c,    z = τ f̂ ŵᵀ,    x ∈ R^{C×D}, zeros at first

with the loss cross entropy. e_c is the mean over templates of text features, not normalized: the
data set's own template, on ImageNet with OpenAI's seven selected ones ("ensemble"). α is .5, and 1
on Flowers: fixed, chosen for each data set by its authors. It starts as zero-shot CLIP; classes
that it wasn't trained on have no residual, and stay so.

The public code keeps the underscores of class names in its prompts (UNDERSCORES), and copies a
checkpoint's rows by number, whosever they are. Its "enhanced base" is a text projection trained
before, which isn't read here.
"""

from __future__ import annotations

import torch
from torch import nn

from clip.prompting import Encoders
from dassl.config import CfgNode, Check, declare_checks, public, real
from dassl.engine import TRAINER_REGISTRY
from dassl.utils import check_choice
from tuning.method import Classes, Method
from tuning.templates import TEMPLATES, template_features
from tuning.trainer import PromptTrainer


def extend_cfg(cfg: CfgNode) -> None:
    """Declare TRAINER.TaskRes, by the public code's names."""
    cfg.TRAINER.TaskRes = CfgNode()
    cfg.TRAINER.TaskRes.RESIDUAL_SCALE = 0.5  # α
    cfg.TRAINER.TaskRes.TEMPLATES = "own"  # own | ensemble
    cfg.TRAINER.TaskRes.UNDERSCORES = False  # whether names keep theirs, as in the public code
    cfg.TRAINER.TaskRes.ENHANCED_BASE = "none"  # nothing else is read
    cfg.TRAINER.TaskRes.PREC = "fp16"  # fp32, fp16, bf16, amp
    why = "there is no context"
    for key in ("N_CTX", "CSC", "CTX_INIT", "CLASS_TOKEN_POSITION"):
        public(cfg, f"TRAINER.TaskRes.{key}", None, why)
    declare_checks({"TRAINER.TaskRes.RESIDUAL_SCALE": real(0)})
    none = Check("none: a text projection trained before isn't read here", lambda x: x == "none")
    declare_checks({"TRAINER.TaskRes.ENHANCED_BASE": none})


class Residual(nn.Module):
    """x (C,D), zeros; α x is added."""

    def __init__(self, classes: int, dim: int) -> None:
        super().__init__()
        self.text_feature_residuals = nn.Parameter(torch.zeros(classes, dim))


class TaskResMethod(Method):
    """Frozen text features with a residual, images as they are.

    Args:
        residual: x.
        base_text_features: e, (C,D).
        scale: α.
    """

    trained_modules = ("residual",)
    class_bound = ("text_feature_residuals",)
    zero_shot_rows = True
    template_name = "zeroshot"
    base_text_features: torch.Tensor

    def __init__(
        self,
        encoders: Encoders,
        classes: Classes,
        residual: Residual,
        base_text_features: torch.Tensor,
        scale: float = 0.5,
    ) -> None:
        super().__init__(encoders, classes)
        self.residual = residual
        self.register_buffer("base_text_features", base_text_features, persistent=False)
        self.scale = scale

    @classmethod
    def from_cfg(cls, cfg: CfgNode, encoders: Encoders, classes: Classes) -> TaskResMethod:
        """From RESIDUAL_SCALE, TEMPLATES and UNDERSCORES."""
        c = cfg.TRAINER.TaskRes
        check_choice("TRAINER.TaskRes.TEMPLATES", c.TEMPLATES, TEMPLATES)
        base = template_features(
            encoders, classes, c.TEMPLATES, joined=True, underscores=c.UNDERSCORES
        )
        return cls(encoders, classes, Residual(*base.shape), base, c.RESIDUAL_SCALE)

    def encode_text(self) -> torch.Tensor:
        """w, (C,D)."""
        return self.base_text_features + self.scale * self.residual.text_feature_residuals


@TRAINER_REGISTRY.register()
class TaskRes(PromptTrainer):
    """Task residual tuning."""

    method_class = TaskResMethod
    config_node = "TaskRes"
