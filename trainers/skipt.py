"""SkipT: Skip Tuning (Wu et al., CVPR 2025, arXiv 2412.11509).

No prompt is learned. From block j = 6 (from 0) on, both towers' blocks and what follows them, the
last norm and the projection, are trained by cross entropy over a template's class features; what
lies below, and τ, stay. Two skips make that cheap:

- Of layers: what stands before block j is computed once for each view and for each class text.
- Of classes: a step takes n = min(50, ⌈C/2⌉) classes and some others. Classes are ranked by
  max_i cos(f_i, p_c) over the batch's images, p_c the class features of CLIP before training; the
  images' own classes come first. The one at rank n + 1 + k of C is taken with probability
  (q_k − q_last)/(q_0 − q_last), q_k = exp(−x_k/λ), x from 0 to 5 in equal steps, λ = .3. The cross
  entropy is over those taken.

A batch has images of one class: DATALOADER.TRAIN_X.SAMPLER RandomClassSampler with N_INS as large
as the batch, as in the configs. The image tower has a rate of its own, IMAGE_LR. It starts as
zero-shot CLIP with the template. New classes have text features by their names.

What the public code does otherwise:
- Which ranks beyond n are taken is drawn once per run; here at each step. If one rank alone lies
  beyond n, it is never taken, there as here.
- In a batch with more classes than n some of its own would be left out, and counted as the first;
  here none is. With fewer than four shots its batches are of several classes; here the sampler
  fills them up from the class.
- Its templates are its own ("a bad photo of a {}, a type of pet."): `other_templates`, "skipt".
- ImageNet, SUN397 and Food-101 have a quarter of the epochs: configs of their own. It can drop
  tokens (off in its runs); it has no mixed precision, here there is.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from functools import reduce

import torch
import torch.nn.functional as F
from torch import nn

from clip.prompting import Change, Encoders, Weights
from dassl.config import CfgNode, declare_checks, public, real, whole
from dassl.engine import TRAINER_REGISTRY
from dassl.utils import UserError
from tuning.method import Classes, Features, Method, unit
from tuning.step import OwnStep
from tuning.trainer import PromptTrainer


def extend_cfg(cfg: CfgNode) -> None:
    """Declare TRAINER.SKIP, by the public code's names."""
    cfg.TRAINER.SKIP = CfgNode()
    cfg.TRAINER.SKIP.START_LAYER = 6  # j
    cfg.TRAINER.SKIP.TOP_RATIO = 0.5  # n in classes; above 1: n itself
    cfg.TRAINER.SKIP.MAX_TOP = 50  # n at most
    cfg.TRAINER.SKIP.LAMBDA = 0.3  # λ
    cfg.TRAINER.SKIP.IMAGE_LR = 0.0  # the image tower's rate; 0: OPTIM.LR
    cfg.TRAINER.SKIP.PREC = "fp16"  # fp32, fp16, bf16, amp
    public(cfg, "OPTIM.NEW_LR", "TRAINER.SKIP.IMAGE_LR")
    why = "how many images its code encodes at once"
    public(cfg, "TRAINER.SKIP.QUICK_BATCH_SIZE", None, why)
    why = "no token is dropped, as in its runs"
    public(cfg, "TRAINER.SKIP.DROP_RATIO", None, why, values=_no_dropping)
    declare_checks({f"TRAINER.SKIP.{key}": real(above=0) for key in ("TOP_RATIO", "LAMBDA")})
    declare_checks({"TRAINER.SKIP.START_LAYER": whole(), "TRAINER.SKIP.MAX_TOP": whole(1)})
    declare_checks({"TRAINER.SKIP.IMAGE_LR": real(0)})


def _no_dropping(ratio: float) -> float:
    if ratio:
        raise ValueError("no token is dropped here")
    return ratio


class Upper(nn.Module):
    """Copies, in fp32, of a tower's blocks from `first` on, and of what follows them.

    norm, projection: CLIP's name and what stands there.
    """

    def __init__(
        self,
        blocks: Sequence[nn.Module],
        first: int,
        norm: tuple[str, nn.Module],
        projection: tuple[str, torch.Tensor],
    ) -> None:
        super().__init__()
        self.layers = len(blocks)
        copies = {str(i): copy.deepcopy(blocks[i]).float() for i in range(first, self.layers)}
        self.blocks = nn.ModuleDict(copies)
        self.add_module(norm[0], copy.deepcopy(norm[1]).float())
        own = projection[1].detach().float().clone()
        self.register_parameter(projection[0], nn.Parameter(own))

    def changes(self) -> list[Change]:
        """These in place of the tower's."""
        found: list[Change] = [
            Weights(int(i), dict(block.named_parameters())) for i, block in self.blocks.items()
        ]
        named = self.named_parameters()
        head = {name: p for name, p in named if not name.startswith("blocks.")}
        return [*found, Weights(self.layers, head)]


def reserve_shares(ranks: int, scale: float) -> torch.Tensor:
    """With which probability each of so many ranks beyond n is taken, (ranks,); scale: λ."""
    if ranks == 1:
        return torch.zeros(1)
    q = torch.exp(-torch.linspace(0, 5, ranks) / scale)
    return (q - q[-1:]) / (q[:1] - q[-1:])


class SkipTMethod(Method):
    """CLIP with trained upper blocks. In a step's features some classes may be left out.

    Those are in `more["kept"]` (C,), false for the ones whose text feature wasn't computed.

    Args:
        image, text: the trained part of each tower.
        prototypes: (C,D) p, CLIP's own class features.
        tops: n; at least C: no class is skipped.
        scale: λ.
        image_lr: the image tower's rate; 0: the text tower's.
    """

    template_name = "skipt"
    trained_modules = ("image_upper", "text_upper")
    prototypes: torch.Tensor
    shares: torch.Tensor

    def __init__(
        self,
        encoders: Encoders,
        classes: Classes,
        image: Upper,
        text: Upper,
        prototypes: torch.Tensor,
        tops: int,
        scale: float = 0.3,
        image_lr: float = 0.0,
    ) -> None:
        super().__init__(encoders, classes)
        self.image_upper, self.text_upper = image, text
        self.image_lr = image_lr
        before, self.tail = classes.template.split("{}")
        self.words = encoders.text.token_ids(before)
        self.layout = encoders.text.layout(classes.names, 0, words=self.words, tail=self.tail)
        self.register_buffer("prototypes", unit(prototypes), persistent=False)
        # By rank, with which probability a class is taken.
        shares = torch.ones(len(prototypes))
        if tops < len(shares):
            shares[tops:] = reserve_shares(len(shares) - tops, scale)
        self.register_buffer("shares", shares, persistent=False)

    @classmethod
    def from_cfg(cls, cfg: CfgNode, encoders: Encoders, classes: Classes) -> SkipTMethod:
        """From all keys of TRAINER.SKIP.

        Raises:
            UserError: a tower has fewer blocks than START_LAYER.
        """
        c, image, text = cfg.TRAINER.SKIP, encoders.image, encoders.text
        first, layers = c.START_LAYER, min(image.layers, text.layers)
        if first > layers:
            raise UserError(f"TRAINER.SKIP.START_LAYER is {first}; the towers have {layers} layers")
        vit, blocks = image.vit, text.transformer.resblocks
        print(f"Prompt: {classes.template}")
        number = len(classes.names)
        tops = c.TOP_RATIO * number if c.TOP_RATIO <= 1 else c.TOP_RATIO
        return cls(
            encoders,
            classes,
            Upper(vit.transformer.resblocks, first, ("ln_post", vit.ln_post), ("proj", vit.proj)),
            Upper(
                *(blocks, first, ("ln_final", text.ln_final)),
                ("text_projection", text.text_projection),
            ),
            encoders.text.encode(classes.sentences()),
            number if c.TOP_RATIO == 1 else min(math.ceil(tops), c.MAX_TOP),
            c.LAMBDA,
            c.IMAGE_LR,
        )

    def param_groups(self, lr: float) -> list[dict]:
        """The text tower's at `lr`, the image tower's at its own rate."""
        image, text = self.image_upper.parameters(), self.text_upper.parameters()
        return [
            {"params": list(text), "lr": lr},
            {"params": list(image), "lr": self.image_lr or lr},
        ]

    def image_changes(self) -> list[Change]:
        """The image tower's trained blocks."""
        return self.image_upper.changes()

    def encode_text(self) -> torch.Tensor:
        """(C,D): of the template."""
        return self._text_of(None)

    def _text_of(self, classes: torch.Tensor | None) -> torch.Tensor:
        found = self.text_of(self.layout, self.text_upper.changes(), classes=classes)
        assert isinstance(found, torch.Tensor)
        return found

    def drawn(self, generator: torch.Generator | None, progress: float) -> dict[str, torch.Tensor]:
        """By rank, a number from 0 to 1: "reserve" (C,)."""
        device = self.shares.device
        return {"reserve": torch.rand(len(self.shares), generator=generator, device=device)}

    def classes_for(
        self, image: torch.Tensor, label: torch.Tensor, reserve: torch.Tensor
    ) -> torch.Tensor:
        """Which classes a step takes, (C,) bool: image (B,D), label (B,), reserve (C,)."""
        likeness = unit(image) @ self.prototypes.t()
        likeness[torch.arange(len(label), device=label.device), label] = math.inf
        order = likeness.max(dim=0).values.argsort(descending=True, stable=True)
        kept = torch.zeros_like(reserve, dtype=torch.bool)
        kept[order] = reserve < self.shares
        kept[label] = True
        return kept

    def own_step(self, batch: dict[str, torch.Tensor], own: OwnStep) -> dict[str, torch.Tensor]:
        """The usual one, over the classes that the batch's images choose."""
        with own.losses_of.autocast():
            image = self.encode_image(batch["image"])
        kept = self.classes_for(image.detach().clone(), batch["label"], batch["reserve"])
        losses = own.losses({"image": image, "label": batch["label"], "kept": kept})
        own.zero_grad()
        own.backward(reduce(torch.add, losses.values()))
        own.update()
        return losses

    def features(
        self,
        image: torch.Tensor,
        kept: torch.Tensor | None = None,
        reserve: torch.Tensor | None = None,
        **known: torch.Tensor,
    ) -> Features:
        """As any method's; with kept (C,) bool the text features of those, zeros for the others."""
        if kept is None or bool(kept.all()):
            return super().features(image, **known)
        rows = kept.nonzero()[:, 0]
        found = self._text_of(rows)
        text = found.new_zeros(len(kept), found.shape[1]).index_copy(0, rows, found)
        return Features(self.encode_image(image), text, {"kept": kept})

    def losses(self, features: Features, label: torch.Tensor) -> dict[str, torch.Tensor]:
        """The cross entropy over the classes that were taken, as "itm"; label (B,)."""
        logits = self.itm_logits(features)
        if "kept" in features.more:
            logits = logits.masked_fill(~features.more["kept"], -math.inf)
        return {"itm": F.cross_entropy(logits, label)}


@TRAINER_REGISTRY.register()
class SkipT(PromptTrainer):
    """Skip tuning."""

    method_class = SkipTMethod
    config_node = "SKIP"
    model_name = "learnable_params"
