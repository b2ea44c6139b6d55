"""LP++ (Huang et al., CVPR 2024, arXiv 2404.02285): a linear probe, and text by the class.

    z = W f̂ + b + α ⊙ (f̂ ẽ̂ᵀ)        W (C,D), b (C,), α (C,); no τ

with the loss cross entropy. W starts at the sum of each class's normalized features, b as torch's
Linear does, and every α at 250 · mean_c mean_{i ∈ c} t_ic, t = f̂ ẽ̂ᵀ. Steps are on all n images at
once, at rates that come from the data: of W and b 4n / λ_max(FᵀF) with momentum .9, of α, every
tenth step, n / (4 max_c Σ_i t_ic²). OPTIM.LR (1) is in units of both.

ALPHA_GRAD: the public code never clears the gradient of α, so that each of its steps goes along the
sum over all iterations so far ("accumulated"); "fixed" takes the gradient of that iteration. The
public code keeps the iteration of the best accuracy on S validation shots of a class, of equals the
last; here the last iteration counts, or with TEST.FINAL_MODEL best_val the first best on min(S,4).
It draws one view of each image for all steps (PASSES 1) and runs in fp16. On ImageNet ẽ is the
normalized mean over OpenAI's seven selected templates ("ensemble"). Classes that it wasn't trained
on have W = b = 0 and α = τ: they are zero-shot.
"""

from __future__ import annotations

import torch
from torch import nn

from clip.prompting import Encoders
from dassl.config import CfgNode, declare_checks, whole
from dassl.engine import TRAINER_REGISTRY
from dassl.utils import check_choice
from tuning.method import Classes, Features, Method, unit
from tuning.pool import PoolTrainer
from tuning.step import OwnStep
from tuning.templates import TEMPLATES, template_features
from tuning.training_data import TrainingData

GRADIENTS = ("accumulated", "fixed")
EVERY = 10  # steps of W to one of α


def extend_cfg(cfg: CfgNode) -> None:
    """Declare TRAINER.LPPP."""
    cfg.TRAINER.LPPP = CfgNode()
    cfg.TRAINER.LPPP.ALPHA_GRAD = "accumulated"  # accumulated | fixed
    cfg.TRAINER.LPPP.PASSES = 1  # views of each image, drawn beforehand; 0: anew each epoch
    cfg.TRAINER.LPPP.TEMPLATES = "own"  # own | ensemble
    cfg.TRAINER.LPPP.PREC = "fp16"  # fp32, fp16, bf16, amp
    declare_checks({"TRAINER.LPPP.PASSES": whole(0)})


class Probe(nn.Module):
    """weight: W (C,D). bias: b (C,). alpha_vec: α (C,)."""

    def __init__(self, classes: int, dim: int, temperature: torch.Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(classes, dim))
        self.bias = nn.Parameter(torch.zeros(classes))
        self.alpha_vec = nn.Parameter(temperature.detach().float().cpu().repeat(classes))


class LPppMethod(Method):
    """The probe on frozen features.

    Args:
        probe: W, b, α.
        frozen_text: ẽ, (C,D).
        accumulated: whether α's gradients are summed.
    """

    trained_modules = ("probe",)
    class_bound = ("weight", "bias", "alpha_vec", "alpha_grad")
    # The rates of W and b, and of α; α's gradient so far (C,); the number of steps.
    prepared = ("rates", "alpha_grad", "steps")
    read_in_training = prepared
    zero_shot_rows = True
    template_name = "zeroshot"
    frozen_text: torch.Tensor
    rates: torch.Tensor
    alpha_grad: torch.Tensor
    steps: torch.Tensor

    def __init__(
        self,
        encoders: Encoders,
        classes: Classes,
        probe: Probe,
        frozen_text: torch.Tensor,
        accumulated: bool = True,
    ) -> None:
        super().__init__(encoders, classes)
        self.probe = probe
        self.register_buffer("frozen_text", frozen_text, persistent=False)
        self.accumulated = accumulated
        self.register_buffer("rates", torch.ones(2, dtype=torch.float64), persistent=False)
        self.register_buffer("alpha_grad", torch.zeros(len(classes.keys)), persistent=False)
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64), persistent=False)

    @classmethod
    def from_cfg(cls, cfg: CfgNode, encoders: Encoders, classes: Classes) -> LPppMethod:
        """From ALPHA_GRAD and TEMPLATES.

        Raises:
            UserError: an unknown one.
        """
        c = cfg.TRAINER.LPPP
        check_choice("TRAINER.LPPP.ALPHA_GRAD", c.ALPHA_GRAD, GRADIENTS)
        check_choice("TRAINER.LPPP.TEMPLATES", c.TEMPLATES, TEMPLATES)
        text = template_features(encoders, classes, c.TEMPLATES, normalized=True)
        probe = Probe(len(text), text.shape[1], encoders.temperature)
        return cls(encoders, classes, probe, text, c.ALPHA_GRAD == "accumulated")

    def encode_text(self) -> torch.Tensor:
        """ẽ, (C,D)."""
        return self.frozen_text

    def itm_logits(self, features: Features) -> torch.Tensor:
        """z, (B,C)."""
        image, probe = unit(features.image), self.probe
        visual = nn.functional.linear(image, probe.weight, probe.bias)
        return visual + probe.alpha_vec * (image @ unit(features.text).t())

    def prepare(self, data: TrainingData) -> None:
        """W, b and α at their starts, and their rates, from the first pass of views."""
        image, label, probe = unit(data.features(0)), data.labels, self.probe
        n, classes = len(image), len(probe.bias)
        probe.weight.zero_().index_add_(0, label, image.to(probe.weight))
        nn.init.uniform_(probe.bias, -(image.shape[1] ** -0.5), image.shape[1] ** -0.5)
        own = image @ unit(self.frozen_text).t()  # t, (n,C)
        sums = own.new_zeros(classes).index_add_(0, label, own.gather(1, label[:, None])[:, 0])
        means = sums / torch.bincount(label, minlength=classes).clamp(min=1)
        probe.alpha_vec.fill_(250 * float(means.double().mean()))
        largest = float(torch.linalg.eigvalsh((image.t() @ image).double())[-1])
        of_alpha = n / (4 * float(own.square().sum(dim=0).max()))
        self.rates.copy_(torch.tensor([4 * n / largest, of_alpha], dtype=torch.float64))
        print(f"Rates: {float(self.rates[0]):g} of W and b, {float(self.rates[1]):g} of α")

    def own_step(self, batch: dict[str, torch.Tensor], own: OwnStep) -> dict[str, torch.Tensor]:
        """A step of W and b, and every tenth one of α."""
        (optimizer,) = own.optimizers.values()
        alpha = self.probe.alpha_vec
        own.zero_grad()
        losses = own.losses(batch)
        own.backward(losses["itm"])
        assert alpha.grad is not None
        gradient = alpha.grad / own.scaler.get_scale()
        alpha.grad = None  # the optimizer leaves it alone
        units = [group["lr"] for group in optimizer.param_groups]
        for group, unit_ in zip(optimizer.param_groups, units, strict=True):
            group["lr"] = unit_ * float(self.rates[0])
        own.update()
        for group, unit_ in zip(optimizer.param_groups, units, strict=True):
            group["lr"] = unit_
        self.steps += 1
        if gradient.isfinite().all():
            self.alpha_grad.add_(gradient) if self.accumulated else self.alpha_grad.copy_(gradient)
        if self.steps % EVERY == 0:
            with torch.no_grad():
                alpha.sub_(units[0] * float(self.rates[1]) * self.alpha_grad)
        return losses


@TRAINER_REGISTRY.register()
class LPpp(PoolTrainer):
    """LP++."""

    method_class = LPppMethod
    config_node = "LPPP"
    model_name = "lppp"
