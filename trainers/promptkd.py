"""PromptKD: Unsupervised Prompt Distillation (Li et al., CVPR 2024, arXiv 2403.02781).

A teacher, trained before, tells its predictions for images without labels, of all classes; a
smaller image tower with prompts, a projector and no text tower learns them. The teacher's text
features t (C,D') are the student's classifier, too:

    s = τ p̂ t̂ᵀ,   p = W₂ ReLU(BN(W₁ f + b₁)) + b₂,   W₁ ∈ R^{D'×D}, W₂ ∈ R^{D'×D'}
    L = w T² Σ softmax(z/T) (log softmax(z/T) − log softmax(s/T)) / (B·C)

f (B,D): features under N deep prompts, as VPT's; z (B,C): the teacher's logits of the same view;
w = 1000 (200 on Aircraft, Flowers and DTD), T = 1. No loss sees a label, so there is no DePT around
it: it has nothing to decouple. Nor are several seeds trained side by side: BatchNorm's means are
one run's.

TEACHER names any run of ours whose text features don't depend on the image; the public one is
PromptSRC on ViT-L/14, trained on 16 shots of the base classes, so D' = 768 (TEACHER_DIM). t is kept
in the checkpoint: a test needs no teacher, and may be of some of the classes. Training is on all
images of all classes (DATASET.NUM_SHOTS -1, DATASET.SUBSAMPLE_CLASSES all), as the paper's
transductive setting has it; then base and new classes are tested with it: the protocol
`transductive` of scripts/run_protocol.py, from the teacher on.

What the public code does otherwise than the paper: nothing that moves its numbers. Text prompts of
the student are built and never used, CE_WEIGHT and PROJECT_LAYER aren't read, the teacher is loaded
without a check of its names, and its "amp" branch stops. It encodes the teacher's texts anew in
each step. Its checkpoints have no t: testing one here takes the teacher.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import nn

from clip.prompting import Encoders
from dassl.config import CfgNode, declare_checks, public, real, whole
from dassl.engine import TRAINER_REGISTRY
from dassl.utils import UserError
from tuning.method import Classes, Features, Method, unit
from tuning.prompts import VisionPrompts, check_depth
from tuning.step import OwnStep
from tuning.trainer import PromptTrainer

_UNUSED = ("N_CTX_TEXT", "PROMPT_DEPTH_TEXT", "CTX_INIT", "PROJECT_LAYER", "CE_WEIGHT")


def extend_cfg(cfg: CfgNode) -> None:
    """Declare TRAINER.PROMPTKD and the ranges of its values."""
    cfg.TRAINER.PROMPTKD = CfgNode()
    cfg.TRAINER.PROMPTKD.TEACHER = ""  # a run's folder or checkpoint
    cfg.TRAINER.PROMPTKD.TEACHER_DIM = 768  # D'
    cfg.TRAINER.PROMPTKD.N_CTX_VISION = 4
    cfg.TRAINER.PROMPTKD.PROMPT_DEPTH_VISION = 9
    cfg.TRAINER.PROMPTKD.KD_WEIGHT = 1000.0  # w
    cfg.TRAINER.PROMPTKD.TEMPERATURE = 1.0  # T
    cfg.TRAINER.PROMPTKD.PREC = "fp16"  # fp32, fp16, bf16, amp
    for key in _UNUSED:
        public(cfg, f"TRAINER.PROMPTKD.{key}", None, "the public code doesn't use it")
    why = "TRAINER.PROMPTKD.TEACHER names the teacher's run, which knows its backbone"
    public(cfg, "TRAINER.PROMPTKD.TEACHER_NAME", None, why)
    public(cfg, "TRAINER.MODAL", None, "the classes are those of DATASET.SUBSAMPLE_CLASSES")
    declare_checks(
        {
            "TRAINER.PROMPTKD.TEACHER_DIM": whole(1),
            "TRAINER.PROMPTKD.N_CTX_VISION": whole(1),
            "TRAINER.PROMPTKD.KD_WEIGHT": real(0),
            "TRAINER.PROMPTKD.TEMPERATURE": real(above=0),
        }
    )


class Projector(nn.Module):
    """p = W₂ ReLU(BN(W₁ f + b₁)) + b₂: (B,D) → (B,D')."""

    def __init__(self, dim: int, out: int) -> None:
        super().__init__()
        self.conv1 = nn.Sequential(  # as it is called, 1 × 1 convolutions over one place
            nn.Linear(dim, out), nn.BatchNorm1d(out), nn.ReLU(), nn.Linear(out, out)
        )

    def forward(self, f: torch.Tensor) -> torch.Tensor:
        """f: (B,D) → p (B,D')."""
        return self.conv1(f)


class PromptKDMethod(Method):
    """A prompted image tower and a projector against the teacher's text features.

    Args:
        vision: the prompts to learn.
        dim: D'.
        weight: w.
        temperature: T.
    """

    trained_modules = ("prompts", "projector")
    label_fit = ()
    image_tower_untouched = False
    teacher_key = "TRAINER.PROMPTKD.TEACHER"
    sees = ("unlabeled_images", "images_of_new_classes", "teacher")
    prepared = ("text",)
    class_bound = ("text",)
    text: torch.Tensor  # t

    def __init__(
        self,
        encoders: Encoders,
        classes: Classes,
        vision: VisionPrompts,
        dim: int = 768,
        weight: float = 1000.0,
        temperature: float = 1.0,
    ) -> None:
        super().__init__(encoders, classes)
        self.prompts = nn.ModuleDict({"vision": vision})
        self.projector = Projector(encoders.embed_dim, dim)
        self.register_buffer("text", torch.zeros(len(classes.keys), dim))
        self.has_text = False
        self.weight, self.temperature = weight, temperature

    @classmethod
    def from_cfg(cls, cfg: CfgNode, encoders: Encoders, classes: Classes) -> PromptKDMethod:
        """From all keys of TRAINER.PROMPTKD but the teacher's.

        Raises:
            UserError: the image tower is a ResNet, or the depth isn't among its layers.
        """
        c = cfg.TRAINER.PROMPTKD
        width = encoders.image.width
        key = "TRAINER.PROMPTKD.PROMPT_DEPTH_VISION"
        check_depth(key, c.PROMPT_DEPTH_VISION, encoders.image.layers)
        vision = VisionPrompts(c.N_CTX_VISION, c.PROMPT_DEPTH_VISION, width)
        return cls(encoders, classes, vision, c.TEACHER_DIM, c.KD_WEIGHT, c.TEMPERATURE)

    @classmethod
    def what_it_sees(cls, cfg: CfgNode) -> tuple[str, ...]:
        """Images of new classes unless it is trained on the base ones."""
        base = cfg.DATASET.SUBSAMPLE_CLASSES == "base"
        return tuple(word for word in cls.sees if word != "images_of_new_classes" or not base)

    @torch.no_grad()
    def encode_text(self) -> torch.Tensor:
        """t, (C,D'), of the checkpoint or else of the teacher.

        Raises:
            UserError: there is no teacher, or its text features are of another size.
        """
        if not self.has_text:
            if self.teacher_run is None:
                raise UserError(f"text features of the teacher are needed: set {self.teacher_key}")
            found = self.teacher_run.method.text_features().float()
            if found.shape != self.text.shape:
                raise UserError(
                    f"{self.teacher_key}: its text features have the shape {tuple(found.shape)}, "
                    f"{tuple(self.text.shape)} are wanted: set TRAINER.PROMPTKD.TEACHER_DIM"
                )
            self.text.copy_(found)
            self.has_text = True
        return self.text

    def encode_image(self, image: torch.Tensor) -> torch.Tensor:
        """(B,3,I,I) → p (B,D')."""
        f = self.encoders.image(image, *self.prompts["vision"]())
        return self.projector(f.to(torch.promote_types(f.dtype, torch.float32)))

    def losses(self, features: Features, label: torch.Tensor) -> dict[str, torch.Tensor]:
        """L as "kd"; label (B,) isn't looked at."""
        student = (self.itm_logits(features) / self.temperature).log_softmax(dim=-1)
        teacher = (features.more["teacher"] / self.temperature).log_softmax(dim=-1)
        divergence = (teacher.exp() * (teacher - student)).sum() * self.temperature**2
        return {"kd": self.weight * divergence / student.numel()}

    def own_step(self, batch: dict[str, torch.Tensor], own: OwnStep) -> dict[str, torch.Tensor]:
        """The usual one, of a single run."""
        losses = own.losses(batch)
        own.zero_grad()
        own.backward(losses["kd"])
        own.update()
        return losses

    # Checkpoints.

    def from_original(self, state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """As it is: t is the teacher's."""
        return state

    def names(self) -> dict[str, str]:
        """As every method's, and BatchNorm's means, which a public checkpoint has with the rest."""
        return {**super().names(), **{name: name for name in self._means()}}

    def _means(self) -> dict[str, torch.Tensor]:
        buffers = self.projector.named_buffers()
        return {f"projector.{name}": value for name, value in buffers}

    @torch.no_grad()
    def load_trained(
        self, state: dict[str, torch.Tensor], keys: Sequence[str] | None, partial: bool = False
    ) -> list[str]:
        """As every method's; takes convolutions' weights as matrices, and BatchNorm's means."""
        own, means = self.trained(), self._means()
        rest = {name: value for name, value in state.items() if name not in means}
        rest = {
            name: value[:, :, 0, 0] if name in own and value.dim() == 4 else value
            for name, value in rest.items()
        }
        taken = super().load_trained(rest, keys, partial)
        found = [name for name in means if name in state]
        for name in found:
            means[name].copy_(state[name])
        return [*taken, *found]

    @torch.no_grad()
    def load_prepared(self, state: Mapping[str, torch.Tensor], keys: Sequence[str] | None) -> None:
        """As every method's; then t is at hand."""
        super().load_prepared(state, keys)
        self.has_text = bool(unit(self.text).any())


@TRAINER_REGISTRY.register()
class PromptKD(PromptTrainer):
    """Unsupervised prompt distillation."""

    method_class = PromptKDMethod
    config_node = "PROMPTKD"
    model_name = "VLPromptLearner"
