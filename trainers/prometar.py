"""ProMetaR: Prompt Learning via Meta-Regularization (Park et al., CVPR 2024, arXiv 2404.00851).

PromptSRC's independent prompts φ, one matrix (N,W) for each layer and tower, kept near the frozen
CLIP by a gradient that a small net of each matrix lets through, and moved by how well they do on a
class of the batch that they weren't adapted to:

    r = w_t·mean|ê − ẽ| + w_i·mean|f̂ − f̃|          w_t = 50, w_i = 20; ẽ of 60 templates
    g(φ) = ∇CE + γ ⊙ ∇r,   γ = sigmoid(W₂ W₁ [∇CE; ∇r]),   W₁ (NW/8,2NW), W₂ (NW/8,NW/8)
    φ ← SGD(g of the batch)
    φ' = φ − .0005 g(φ) of the support, the batch without one of its classes, drawn at random
    L_meta = .0005 · mean_j λ_j CE(f_j', y_j) + (1−λ_j) CE(f_j', y_s(j))      under φ'
    f_j' = λ_j f_j + (1−λ_j) f_s(j),   λ_j ~ Beta(.5, .5),   s(j) a random image of the support
    φ ← SGD(∇_φ L_meta), through φ' in second order

j goes over the images of that class. γ's numbers each serve eight neighbors of φ. A batch of one
class has no second step. `META` has the controls: "step" makes the second step without L_meta,
"none" makes none.

What the public code does otherwise than the paper, and so does this: both steps are one SGD
optimizer's, so that momentum and weight decay act twice a batch, which moves the prompts about a
thousand times as much as L_meta does (the control "step" tells). The nets' schedule never goes on
from its warm-up's 1e-6, where no weight moves by more than rounding: they are random maps, drawn
once, and here they aren't trained. Its checkpoints don't have them, nor do ours; MODEL.INIT_WEIGHTS
takes them by its names (linear_text_gamma.0.0.weight).

Here gradients in second order go through the plain encoders, and only those of the support; those
of r's two halves are one pass, each being a tower's; of the support only images that are mixed in
are encoded again. In fp16 gradients are scaled, which the public code doesn't do. The step logs CE
and r as "loss", and L_meta, the public code's loss, as "loss_meta".
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from clip.prompting import Encoders
from dassl.config import CfgNode, declare_checks, public, real, whole
from dassl.engine import TRAINER_REGISTRY
from dassl.utils import UserError, check_choice, resolve_seed
from tuning.method import Classes, Features
from tuning.prompts import public_words
from tuning.step import OwnStep
from tuning.trainer import PromptTrainer

from .promptsrc import IndependentPrompts, PromptSRCMethod, mean_text_features

META = ("loss", "step", "none")
# The losses whose gradient the nets let through; the others fit the labels.
REGULARIZERS = ("text", "image")
# What the public code sets of its nets' optimizer.
_VNET = (
    *("NAME", "LR", "WEIGHT_DECAY", "MOMENTUM", "MAX_EPOCH", "LR_SCHEDULER"),
    *("WARMUP_EPOCH", "WARMUP_TYPE", "WARMUP_CONS_LR"),
)


def extend_cfg(cfg: CfgNode) -> None:
    """Declare TRAINER.PROMETAR and the ranges of its values."""
    cfg.TRAINER.PROMETAR = CfgNode()
    cfg.TRAINER.PROMETAR.N_CTX_VISION = 4
    cfg.TRAINER.PROMETAR.N_CTX_TEXT = 4
    cfg.TRAINER.PROMETAR.CTX_INIT = "a photo of a"  # its first N_CTX_TEXT tokens start
    cfg.TRAINER.PROMETAR.PROMPT_DEPTH_VISION = 9
    cfg.TRAINER.PROMETAR.PROMPT_DEPTH_TEXT = 9
    cfg.TRAINER.PROMETAR.TEXT_LOSS_WEIGHT = 50.0
    cfg.TRAINER.PROMETAR.IMAGE_LOSS_WEIGHT = 20.0
    cfg.TRAINER.PROMETAR.META = "loss"  # loss | step | none
    cfg.TRAINER.PROMETAR.ADAPT_LR = 0.0005  # of φ'
    cfg.TRAINER.PROMETAR.LR_RATIO = 0.0005  # weight of L_meta
    cfg.TRAINER.PROMETAR.FAST_ADAPTATION = False  # first order
    cfg.TRAINER.PROMETAR.MIXUP_ALPHA = 0.5
    cfg.TRAINER.PROMETAR.MIXUP_BETA = 0.5
    cfg.TRAINER.PROMETAR.DIM_RATE = 8  # numbers of a prompt to one of γ
    cfg.TRAINER.PROMETAR.PREC = "fp16"  # fp32, fp16, bf16, amp
    public_words(cfg, "TRAINER.PROMETAR.CTX_INIT")
    for key in _VNET:
        public(cfg, f"OPTIM_VNET.{key}", None, "at the rate of its warm-up no net's weight moves")
    declare_checks(
        {
            **{
                f"TRAINER.PROMETAR.{key}": whole(1)
                for key in ("N_CTX_VISION", "N_CTX_TEXT", "DIM_RATE")
            },
            **{
                f"TRAINER.PROMETAR.{key}": real(0)
                for key in ("TEXT_LOSS_WEIGHT", "IMAGE_LOSS_WEIGHT", "ADAPT_LR", "LR_RATIO")
            },
            "TRAINER.PROMETAR.MIXUP_ALPHA": real(above=0),
            "TRAINER.PROMETAR.MIXUP_BETA": real(above=0),
        }
    )


class Modulation(nn.Module):
    """g = ∇CE + γ ⊙ ∇r of a tower's J prompts, with a net for each; the nets aren't trained.

    Args:
        depth: J.
        numbers: NW, of a prompt.
        rate: how many of them share one of γ; divides `numbers`.
        generator: of W₁ and W₂, uniform within ±1/√inputs.
    """

    first: torch.Tensor
    second: torch.Tensor

    def __init__(self, depth: int, numbers: int, rate: int, generator: torch.Generator) -> None:
        super().__init__()
        if numbers % rate:
            raise UserError(f"TRAINER.PROMETAR.DIM_RATE is {rate}; it must divide {numbers}")
        self.rate, hidden = rate, numbers // rate
        for name, inputs in (("first", 2 * numbers), ("second", hidden)):
            drawn = torch.rand(depth, hidden, inputs, generator=generator)
            self.register_buffer(name, (2 * drawn - 1) * inputs**-0.5, persistent=False)

    def forward(self, fit: torch.Tensor, regularizer: torch.Tensor) -> torch.Tensor:
        """∇CE and ∇r, (J,N,W) each → g (J,N,W)."""
        both = torch.cat([fit.flatten(1), regularizer.flatten(1)], dim=1).unsqueeze(-1)
        gamma = (self.second @ (self.first @ both.to(self.first.dtype))).sigmoid()
        return fit + gamma.flatten(1).repeat_interleave(self.rate, dim=1).view_as(fit) * regularizer


class ProMetaRMethod(PromptSRCMethod):
    """PromptSRC's prompts and distances, and a step of its own.

    Args:
        nets: of the text prompts' gradients and of the image prompts'.
        meta: one of `META`.
        adapt_rate, meta_weight: .0005 both.
        first_order: whether ∇L_meta leaves out how φ' depends on φ.
        mixup: the two parameters of λ's Beta distribution.
        The others are PromptSRC's.
    """

    def __init__(
        self,
        encoders: Encoders,
        classes: Classes,
        prompts: IndependentPrompts,
        frozen_text: torch.Tensor,
        nets: tuple[Modulation, Modulation],
        text_weight: float = 50.0,
        image_weight: float = 20.0,
        meta: str = "loss",
        adapt_rate: float = 0.0005,
        meta_weight: float = 0.0005,
        first_order: bool = False,
        mixup: tuple[float, float] = (0.5, 0.5),
    ) -> None:
        super().__init__(encoders, classes, prompts, frozen_text, text_weight, image_weight)
        self.nets = nn.ModuleDict({"text": nets[0], "vision": nets[1]})
        self.meta = meta
        self.adapt_rate, self.meta_weight = adapt_rate, meta_weight
        self.first_order, self.mixup = first_order, mixup

    @classmethod
    def from_cfg(cls, cfg: CfgNode, encoders: Encoders, classes: Classes) -> ProMetaRMethod:
        """From all keys of TRAINER.PROMETAR.

        Raises:
            UserError: the image tower is a ResNet, a depth isn't among its tower's layers, META is
                unknown, or DIM_RATE divides no prompt.
        """
        c = cfg.TRAINER.PROMETAR
        check_choice("TRAINER.PROMETAR.META", c.META, META)
        prompts = IndependentPrompts.from_cfg(cfg, "PROMETAR", encoders)
        generator = torch.Generator().manual_seed(resolve_seed(cfg.SEED))
        text, vision = (
            Modulation(len(tower), tower[0].numel(), c.DIM_RATE, generator)
            for tower in _towers(prompts)
        )
        return cls(
            *(encoders, classes, prompts, mean_text_features(encoders, classes), (text, vision)),
            *(c.TEXT_LOSS_WEIGHT, c.IMAGE_LOSS_WEIGHT, c.META, c.ADAPT_LR, c.LR_RATIO),
            *(c.FAST_ADAPTATION, (c.MIXUP_ALPHA, c.MIXUP_BETA)),
        )

    def losses(self, features: Features, label: torch.Tensor) -> dict[str, torch.Tensor]:
        """CE as "itm", r as "text" and "image"; label (B,)."""
        fit = F.cross_entropy(self.itm_logits(features), label)
        return {"itm": fit, **self.distances(features)}

    # The step.

    def drawn(self, generator: torch.Generator | None, progress: float) -> dict[str, torch.Tensor]:
        """What seeds a step's draws: query class, λ and s."""
        device = self.encoders.logit_scale.device
        seed = torch.empty((), dtype=torch.int64, device=device)
        return {"draws": seed.random_(generator=generator)}

    def own_step(self, batch: dict[str, torch.Tensor], own: OwnStep) -> dict[str, torch.Tensor]:
        """A step along g, then one along ∇L_meta; → CE and r, and L_meta as "meta".

        What else is trained with the prompts, such as a second head, takes part in both steps by
        what its losses say; L_meta is of the ITM head.
        """
        optimizer = next(iter(own.optimizers.values()))
        trained = [p for group in optimizer.param_groups for p in group["params"]]
        beside = [p for p in trained if all(p is not own_one for own_one in self._leaves())]
        losses = own.losses(batch)
        leaves = [*self._leaves(), *beside]
        gradients, others = self._gradients(losses, beside, own)
        own.step_along(leaves, [*gradients[0], *gradients[1], *others])
        losses = {name: loss.detach() for name, loss in losses.items()}
        losses["meta"] = torch.zeros_like(losses["itm"])
        parts = None if self.meta == "none" else _drawn_parts(batch, self.mixup)
        if parts is None:
            return losses
        found = [torch.zeros_like(p) for p in leaves]
        if self.meta == "loss":
            losses["meta"], found = self._meta(batch, parts, own, beside)
        own.step_along(leaves, found)
        return losses

    def _leaves(self) -> list[nn.Parameter]:
        """All prompts, those of the text first."""
        text, vision = _towers(self.prompts)
        return [*text, *vision]

    def _stacked(self, each: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """As `_leaves`, and what is beside them → of each tower one (J,N,W)."""
        text, vision = (len(tower) for tower in _towers(self.prompts))
        return [torch.stack(list(part)) for part in (each[:text], each[text : text + vision])]

    def _gradients(
        self,
        losses: Mapping[str, torch.Tensor],
        beside: Sequence[torch.Tensor],
        own: OwnStep,
        twice: bool = False,
    ) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        """→ g, (J,N,W) of each tower; and the gradients of what is trained beside the prompts.

        twice: whether they shall have a gradient themselves.
        """
        fit = sum(loss for name, loss in losses.items() if name not in REGULARIZERS)
        regularizer = sum(losses[name] for name in REGULARIZERS)
        leaves = self._leaves()
        assert torch.is_tensor(fit) and torch.is_tensor(regularizer)
        of_fit = own.gradient(fit, [*leaves, *beside], twice)
        of_regularizer = own.gradient(regularizer, leaves, twice)
        pairs = zip(self._stacked(of_fit), self._stacked(of_regularizer), strict=True)
        nets = self.nets.values()
        gradients = [net(*pair) for net, pair in zip(nets, pairs, strict=True)]
        return gradients, of_fit[len(leaves) :]

    def _meta(
        self,
        batch: dict[str, torch.Tensor],
        parts: _Parts,
        own: OwnStep,
        beside: Sequence[nn.Parameter],
    ) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """L_meta, and its gradients of all prompts and of what is trained beside them."""
        second = not self.first_order
        with sdpa_kernel(SDPBackend.MATH):
            losses = self._support_losses(batch, parts, own)
            gradients, _ = self._gradients(losses, beside, own, twice=second)
        now = self._stacked(self._leaves())
        adapted = [
            (x - self.adapt_rate * g).detach().requires_grad_()
            for x, g in zip(now, gradients, strict=True)
        ]
        with own.losses_of.autocast():
            loss = self._query_loss(batch, parts, adapted)
        found = own.gradient(loss, adapted)
        others = [torch.zeros_like(p) for p in beside]
        if second:
            # ∇L_meta = v − .0005 (∂g/∂φ)ᵀ v, v at φ'; v whole, so that nothing underflows in fp16.
            along = sum((g * v).sum() for g, v in zip(gradients, found, strict=True))
            assert torch.is_tensor(along)
            with sdpa_kernel(SDPBackend.MATH):
                bent = own.gradient(along, [*self._leaves(), *beside])
            pairs = zip(found, self._stacked(bent), strict=True)
            found = [v - self.adapt_rate * b for v, b in pairs]
            others = [-self.adapt_rate * b for b in bent[len(self._leaves()) :]]
        found = [self.meta_weight * x for x in (*found[0], *found[1], *others)]
        return self.meta_weight * loss.detach(), found

    def _support_losses(
        self, batch: dict[str, torch.Tensor], parts: _Parts, own: OwnStep
    ) -> dict[str, torch.Tensor]:
        """All losses of the support, through encoders that can be differentiated twice."""
        image = batch["image"][parts.support]
        frozen = batch.get("frozen_image")
        encoders = self.encoders if self.first_order else self.encoders.twice_differentiable()
        with own.losses_of.autocast():
            frozen = self.encoders.image(image) if frozen is None else frozen[parts.support]
            features = Features(
                encoders.image(image, *self.prompts.vision()),
                encoders.text(self.layout, *self.prompts.text()),
                {"frozen_image": frozen},
            )
        return own.losses_of.method.losses(features, batch["label"][parts.support])

    def _query_loss(
        self, batch: dict[str, torch.Tensor], parts: _Parts, adapted: Sequence[torch.Tensor]
    ) -> torch.Tensor:
        """The mean cross entropy of the mixed images, under adapted prompts (J,N,W)."""
        chosen, where = parts.partners.unique(return_inverse=True)
        rows = torch.cat([parts.query, parts.support[chosen]])
        of_text, of_image = ((x[0], x[1:] if len(x) > 1 else None) for x in adapted)
        text = self.encoders.text(self.layout, *of_text)
        image = self.encoders.image(batch["image"][rows], *of_image)
        own, others = image.split([len(parts.query), len(chosen)])
        share = parts.share.to(image.device)
        mixed = share[:, None] * own + (1 - share[:, None]) * others[where]
        logits = self.itm_logits(Features(mixed.to(image.dtype), text))
        label = batch["label"]
        labels = label[parts.query], label[parts.support[parts.partners]]
        of_own, of_other = (F.cross_entropy(logits, y, reduction="none") for y in labels)
        return (share * of_own + (1 - share) * of_other).mean()

    # Checkpoints.

    def names(self) -> dict[str, str]:
        """As every method's, and the nets' weights as nets.<tower>.<layer>.<0|1>."""
        return {**super().names(), **{name: name for name in self._weights()}}

    def _weights(self) -> dict[str, torch.Tensor]:
        return {
            f"nets.{tower}.{layer}.{i}": weight
            for tower in self.nets
            for i, which in enumerate(("first", "second"))
            for layer, weight in enumerate(self.get_buffer(f"nets.{tower}.{which}"))
        }

    @torch.no_grad()
    def load_trained(
        self, state: dict[str, torch.Tensor], keys: Sequence[str] | None, partial: bool = False
    ) -> list[str]:
        """As every method's; and takes nets where there are such. Raises as that."""
        nets = {name: weight for name, weight in self._weights().items() if name in state}
        rest = {name: value for name, value in state.items() if name not in nets}
        taken = super().load_trained(rest, keys, partial)
        for name, weight in nets.items():
            if weight.shape != state[name].shape:
                raise UserError(f"{name} has shape {tuple(state[name].shape)}: set DIM_RATE to 8")
            weight.copy_(state[name])
        return [*taken, *nets]


class _Parts(NamedTuple):
    """A batch's rows of query and support, what each query is mixed with, and how.

    query (q,), support (s,): rows of the batch. partners (q,): rows of the support. share (q,): λ.
    """

    query: torch.Tensor
    support: torch.Tensor
    partners: torch.Tensor
    share: torch.Tensor


def _drawn_parts(batch: dict[str, torch.Tensor], mixup: tuple[float, float]) -> _Parts | None:
    """Those of a batch by its seed "draws"; None where it has one class."""
    label, device = batch["label"].cpu(), batch["label"].device
    classes = label.unique()
    if len(classes) == 1:
        return None
    with torch.random.fork_rng(devices=[]):
        # Not torch.manual_seed: that is the GPUs', too.
        torch.default_generator.manual_seed(int(batch["draws"]))
        held_out = classes[torch.randperm(len(classes))[0]]
        query, support = ((label == held_out) == own for own in (True, False))
        rows = [part.nonzero().flatten() for part in (query, support)]
        share = torch.distributions.Beta(*mixup).sample((len(rows[0]),))
        partners = torch.randint(len(rows[1]), (len(rows[0]),))
    return _Parts(*(x.to(device) for x in (*rows, partners, share)))


def _towers(prompts: IndependentPrompts) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """The prompts of the text tower's layers, and of the image tower's."""
    vision = prompts.vision
    return [prompts.ctx, *prompts.deep], [vision.prompts, *vision.deep]


@TRAINER_REGISTRY.register()
class ProMetaR(PromptTrainer):
    """Prompt learning via meta-regularization."""

    method_class = ProMetaRMethod
    config_node = "PROMETAR"
    model_name = "VLPromptLearner"

    def forward_backward(self, batch: dict) -> dict:
        """As every trainer's; "loss" is what the first step goes down, "loss_meta" the second's."""
        losses = super().forward_backward(batch)
        return {**losses, "loss": losses["loss"] - losses["loss_meta"]}
