"""CLIP-Adapter (Gao et al., IJCV 2024, arXiv 2110.04544).

f' = α·A(f) + (1−α)·f with a bottleneck A = ReLU(W₂ ReLU(W₁ f)) and α = .2; the text is frozen.
"""

from __future__ import annotations

import torch
from torch import nn

from clip.prompting import Encoders
from dassl.config import CfgNode, declare_checks, share, whole
from dassl.engine import TRAINER_REGISTRY
from tuning.method import Classes, Features, Method
from tuning.trainer import PromptTrainer


def extend_cfg(cfg: CfgNode) -> None:
    """Declare TRAINER.CLIP_ADAPTER and the ranges of its values."""
    cfg.TRAINER.CLIP_ADAPTER = CfgNode()
    cfg.TRAINER.CLIP_ADAPTER.RATIO = 0.2  # α
    cfg.TRAINER.CLIP_ADAPTER.REDUCTION = 4  # D over the bottleneck's width
    cfg.TRAINER.CLIP_ADAPTER.PREC = "fp16"  # fp32, fp16, bf16, amp
    declare_checks(
        {"TRAINER.CLIP_ADAPTER.RATIO": share, "TRAINER.CLIP_ADAPTER.REDUCTION": whole(1)}
    )


class Adapter(nn.Module):
    """A(f) = ReLU(W₂ ReLU(W₁ f)), W₁ ∈ R^{D/4×D}, no biases. f: (B,D)."""

    def __init__(self, dim: int, reduction: int = 4) -> None:
        super().__init__()
        self.fc = nn.Sequential(
            nn.Linear(dim, dim // reduction, bias=False),
            nn.ReLU(),
            nn.Linear(dim // reduction, dim, bias=False),
            nn.ReLU(),
        )

    def forward(self, f: torch.Tensor) -> torch.Tensor:
        """f: (B,D) → A(f) (B,D)."""
        return self.fc(f)


class CLIPAdapterMethod(Method):
    """Adapted image features and frozen text features.

    Args:
        adapter: A.
        frozen_text: (C,D).
        ratio: α.
    """

    trained_modules = ("adapter",)
    frozen_text: torch.Tensor
    template_name = "zeroshot"

    def __init__(
        self,
        encoders: Encoders,
        classes: Classes,
        adapter: Adapter,
        frozen_text: torch.Tensor,
        ratio: float = 0.2,
    ) -> None:
        super().__init__(encoders, classes)
        self.adapter = adapter
        self.register_buffer("frozen_text", frozen_text, persistent=False)
        self.ratio = ratio

    @classmethod
    def from_cfg(cls, cfg: CfgNode, encoders: Encoders, classes: Classes) -> CLIPAdapterMethod:
        """From RATIO, REDUCTION and the data set's template ("zeroshot" where it has one)."""
        c = cfg.TRAINER.CLIP_ADAPTER
        print(f"Prompt: {classes.template}")
        adapter = Adapter(encoders.embed_dim, c.REDUCTION)
        return cls(encoders, classes, adapter, encoders.text.encode(classes.sentences()), c.RATIO)

    def encode_text(self) -> torch.Tensor:
        """ẽ, (C,D): the frozen features of the template's sentences."""
        return self.frozen_text

    def features(self, image: torch.Tensor, **known: torch.Tensor) -> Features:
        """Image (B,3,I,I) or (B,D) → α A(f) + (1−α) f (B,D), at least fp32, and ẽ (C,D)."""
        f = self.encode_image(image)
        f = f.to(torch.promote_types(f.dtype, torch.float32))
        adapted = self.ratio * self.adapter(f) + (1 - self.ratio) * f
        return Features(image=adapted, text=self.text_features())


@TRAINER_REGISTRY.register()
class CLIPAdapter(PromptTrainer):
    """CLIP-Adapter."""

    method_class = CLIPAdapterMethod
    config_node = "CLIP_ADAPTER"
    model_name = "clip_adapter"
