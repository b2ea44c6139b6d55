"""CLAP and ZS-LP (Silva-Rodríguez et al., CVPR 2024, arXiv 2312.12730).

ZS-LP is a linear probe that starts from the text features: prototypes w ∈ R^{C×D}, w_c = e_c at
first, z = τ f̂ ŵᵀ, and the loss is cross entropy. CLAP keeps each of them near its start:

    L = CE + 1/C Σ_c a_c ‖w_c − e_c‖²

a_c is the mean probability that zero-shot CLIP gives class c on the images of class c; text
features aren't normalized. CONSTRAINT "l2" leaves a as it is. "l2-adaptative" (the public code's
word) makes one step of an augmented Lagrangian after each epoch, with d_c = ‖w_c − e_c‖²:

    a_c ← max(0, a_c + ρ_c d_c),    ρ_c ← d_c

ρ is 0 at first, so that the first step changes nothing. Nothing is chosen: no validation images,
one setting for all data sets. e is the mean over templates, the data set's own, on ImageNet with
OpenAI's seven selected ones ("ensemble"). Views are drawn in 20 passes before the first step
(PASSES), and an epoch is n/B batches of these, n the number of images.
Where n is below B the public code fills its one batch from several passes, and so does this.
Classes that it wasn't trained on keep their text features.

The public code keeps underscores of class names in its prompts (UNDERSCORES), and has all of it as
one trainer ADAPTER (INIT ZS); TaskRes, CLIP-Adapter and Tip-Adapter are there, too, with a search
of hyper-parameters on the test images. Its penalty diverged as "l2-adaptative" at rate .1 on few
images.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from clip.prompting import Encoders
from dassl.config import CfgNode, declare_checks, public, whole
from dassl.engine import TRAINER_REGISTRY
from dassl.utils import UserError, check_choice
from tuning.method import Classes, Features, Method, cosine_logits
from tuning.pool import PoolTrainer
from tuning.templates import TEMPLATES, template_features
from tuning.training_data import TrainingData

CONSTRAINTS = ("l2", "l2-adaptative")


def extend_cfg(cfg: CfgNode) -> None:
    """Declare TRAINER.ADAPTER, by the public code's names."""
    cfg.TRAINER.ADAPTER = CfgNode()
    cfg.TRAINER.ADAPTER.CONSTRAINT = "l2"  # l2 | l2-adaptative; of ZS-LP none
    cfg.TRAINER.ADAPTER.PASSES = 20  # views of each image, drawn beforehand; 0: anew each epoch
    cfg.TRAINER.ADAPTER.TEMPLATES = "own"  # own | ensemble
    cfg.TRAINER.ADAPTER.UNDERSCORES = False  # whether names keep theirs, as in the public code
    cfg.TRAINER.ADAPTER.PREC = "fp16"  # fp32, fp16, bf16, amp
    public(cfg, "TRAINER.ADAPTER.INIT", None, "the trainers CLAP and ZSLP are those with ZS")
    public(cfg, "TRAINER.ADAPTER.ENHANCED_BASE", None, "a text projection isn't read")
    declare_checks({"TRAINER.ADAPTER.PASSES": whole(0)})


class Prototypes(nn.Module):
    """w (C,D)."""

    def __init__(self, start: torch.Tensor) -> None:
        super().__init__()
        self.prototypes = nn.Parameter(start.clone())


class ZSLPMethod(Method):
    """A classifier that starts from the frozen text features.

    Args:
        adapter: w.
        base_text_features: e, (C,D).
    """

    trained_modules: tuple[str, ...] = ("adapter",)
    class_bound: tuple[str, ...] = ("prototypes",)
    zero_shot_rows = True
    template_name = "zeroshot"
    base_text_features: torch.Tensor

    def __init__(
        self, encoders: Encoders, classes: Classes, base_text_features: torch.Tensor
    ) -> None:
        super().__init__(encoders, classes)
        self.adapter = Prototypes(base_text_features)
        self.register_buffer("base_text_features", base_text_features, persistent=False)

    @classmethod
    def resolve_cfg(cls, cfg: CfgNode) -> None:
        """ZS-LP has no constraint."""
        cfg.TRAINER.ADAPTER.CONSTRAINT = "none"

    @classmethod
    def from_cfg(cls, cfg: CfgNode, encoders: Encoders, classes: Classes) -> ZSLPMethod:
        """From TEMPLATES and UNDERSCORES."""
        c = cfg.TRAINER.ADAPTER
        check_choice("TRAINER.ADAPTER.TEMPLATES", c.TEMPLATES, TEMPLATES)
        base = template_features(
            encoders, classes, c.TEMPLATES, joined=True, underscores=c.UNDERSCORES
        )
        return cls(encoders, classes, base)

    def encode_text(self) -> torch.Tensor:
        """w, (C,D)."""
        return self.adapter.prototypes


class CLAPMethod(ZSLPMethod):
    """And a penalty that keeps each row near its start. a, ρ: (C,)."""

    class_bound = ("prototypes", "multipliers", "penalties")
    prepared = ("multipliers", "penalties")
    read_in_training = prepared
    multipliers: torch.Tensor
    penalties: torch.Tensor

    def __init__(
        self, encoders: Encoders, classes: Classes, base_text_features: torch.Tensor
    ) -> None:
        super().__init__(encoders, classes, base_text_features)
        for name in self.prepared:
            zeros = base_text_features.new_zeros(len(classes.keys))
            self.register_buffer(name, zeros, persistent=False)

    @classmethod
    def resolve_cfg(cls, cfg: CfgNode) -> None:
        """The constraint stays as it is said."""

    @classmethod
    def from_cfg(cls, cfg: CfgNode, encoders: Encoders, classes: Classes) -> ZSLPMethod:
        """As ZS-LP's.

        Raises:
            UserError: an unknown CONSTRAINT, or none.
        """
        constraint = cfg.TRAINER.ADAPTER.CONSTRAINT
        if constraint == "none":
            raise UserError("TRAINER.ADAPTER.CONSTRAINT none: that is the trainer ZSLP")
        check_choice("TRAINER.ADAPTER.CONSTRAINT", constraint, CONSTRAINTS)
        return super().from_cfg(cfg, encoders, classes)

    def prepare(self, data: TrainingData) -> None:
        """a_c, over all passes of views."""
        passes = data.cfg.TRAINER.ADAPTER.PASSES or 1
        sums = torch.zeros_like(self.multipliers)
        for epoch in range(passes):
            logits = cosine_logits(
                data.features(epoch), self.base_text_features, self.encoders.temperature
            )
            own = logits.softmax(dim=-1).gather(1, data.labels[:, None]).squeeze(1)
            sums.index_add_(0, data.labels, own.to(sums))
        counts = torch.bincount(data.labels, minlength=len(sums)) * passes
        self.multipliers.copy_(sums / counts.clamp(min=1))

    def distances(self) -> torch.Tensor:
        """d, (C,)."""
        return (self.adapter.prototypes - self.base_text_features).square().sum(dim=-1)

    def losses(self, features: Features, label: torch.Tensor) -> dict[str, torch.Tensor]:
        """Cross entropy, and "near": the penalty. label: (B,)."""
        near = (self.multipliers * self.distances()).mean()
        return {"itm": F.cross_entropy(self.itm_logits(features), label), "near": near}

    @torch.no_grad()
    def outer_step(self) -> None:
        """The step of the augmented Lagrangian."""
        distances = self.distances()
        self.multipliers.add_(self.penalties * distances).clamp_(min=0)
        self.penalties.copy_(distances)


@TRAINER_REGISTRY.register()
class ZSLP(PoolTrainer):
    """A linear probe that starts from zero-shot CLIP."""

    method_class = ZSLPMethod
    config_node = "ADAPTER"
    model_name = "adapter"


@TRAINER_REGISTRY.register()
class CLAP(PoolTrainer):
    """Class-adaptive linear probe."""

    method_class = CLAPMethod
    config_node = "ADAPTER"
    model_name = "adapter"
    method: CLAPMethod

    def after_epoch(self) -> None:
        """As the engine's; "l2-adaptative" first makes its outer step."""
        if self.method_cfg(self.cfg).CONSTRAINT == "l2-adaptative":
            self.method.outer_step()
        super().after_epoch()
