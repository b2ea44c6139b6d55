"""DePT: Decoupled Prompt Tuning (Zhang et al., CVPR 2024, arXiv 2309.07439).

Prompt tuning loses on new classes what it gains on base ones: base-specific knowledge crowds the
feature channels both share. DePT keeps that knowledge in a space of its own, the channel-wise
transformed features, with a classifier of their own: the CAT head. It stands beside the usual
image-text-matching (ITM) head of any method, is trained with it, fused with it where the classes
are the trained ones, and dropped where they aren't.

Shape letters: tuning/method.py's.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import nn

from clip.prompting import Encoders
from dassl.config import UNCHANGED, CfgNode, declare_checks, public, real
from dassl.engine import TRAINER_REGISTRY
from dassl.utils import UserError, check_choice
from tuning.around import Around, enter
from tuning.method import Classes, Features, Method, cosine_logits
from tuning.naming import is_wrapped, wrapped_name
from tuning.saved import ASSUMED, rows_of, untrained_classes
from tuning.trainer import PromptTrainer

from . import modules

HEADS = ("linear", "similarity")
CWTS = ("separate", "shared", "none")
ROWS = ("both", "image")
FUSIONS = ("logits", "prob", "none")


def extend_cfg(cfg: CfgNode) -> None:
    """Declare TRAINER.DEPT, and the released code's names for its keys."""
    cfg.TRAINER.DEPT = CfgNode()
    cfg.TRAINER.DEPT.WEIGHT = 0.7  # λ, in the loss and in the fusion
    cfg.TRAINER.DEPT.LR_MULT = 6.5  # learning rate of the CAT head, in prompt learning rates
    cfg.TRAINER.DEPT.HEAD = "linear"  # linear | similarity
    cfg.TRAINER.DEPT.CWT = "separate"  # separate | shared | none
    cfg.TRAINER.DEPT.ROWS = "both"  # both | image: what the CAT head is trained on
    cfg.TRAINER.DEPT.FUSION = "logits"  # logits | prob | none (the CAT head alone)
    # The names of the released code.
    public(cfg, "TRAINER.LINEAR_PROBE.WEIGHT", "TRAINER.DEPT.WEIGHT")
    public(cfg, "TRAINER.LINEAR_PROBE.TYPE", "TRAINER.DEPT.HEAD")
    fusion = {True: "logits", False: "none"}
    public(cfg, "TRAINER.LINEAR_PROBE.TEST_TIME_FUSION", "TRAINER.DEPT.FUSION", values=fusion)
    cwt = {True: "separate", False: "none"}
    public(cfg, "TRAINER.FILM.LINEAR_PROBE", "TRAINER.DEPT.CWT", values=cwt)
    public(cfg, "OPTIM.LR_EXP", "TRAINER.DEPT.LR_MULT")
    public(cfg, "OPTIM.NEW_LR_MULT", "TRAINER.DEPT.LR_MULT")  # this and the next: DeCaPT's
    public(cfg, "TRAINER.DEPT.CLS_WEIGHT", "TRAINER.DEPT.WEIGHT")
    why = "a method declares what it trains, the CAT head with it"
    public(cfg, "TRAINER.NAMES_TO_UPDATE", "TRAINER.DEPT.CWT", why, values=_what_is_trained)
    declare_checks({"TRAINER.DEPT.LR_MULT": real(0)})


def _what_is_trained(names: Sequence[str]) -> object:
    """CWT for NAMES_TO_UPDATE of the released code: untrained, a cwT stays the identity."""
    everything = {"prompt_learner", "linear_probe", "film"}
    if not isinstance(names, (list, tuple)) or not set(names) <= everything:
        raise ValueError(f"takes a list of {', '.join(sorted(everything))}")
    if lacking := everything - {"film"} - set(names):
        raise ValueError(f"{' and '.join(sorted(lacking))} can't be left untrained here")
    return UNCHANGED if "film" in names else "none"


class ChannelWiseTransform(nn.Module):
    """cwT(x) = γ ⊙ x + β: the identity at the start. x: (…,D)."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(dim))
        self.bias = nn.Parameter(torch.zeros(dim))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x: (…,D) → γ ⊙ x + β (…,D)."""
        return self.scale * x + self.bias


class CATHead(nn.Module):
    """The channel-adjusted-transfer head: cwT of each modality, and a classifier both share.

    Args:
        dim: D.
        classes: C, the classes it is trained on.
        kind: "linear": z = W·cwT(x) + b, no normalization, no temperature; "similarity": the
            cosine of cwT(f) and cwT(e), times τ.
        cwt: "separate" for image and text, one "shared" by both, or "none".
        rows: trained on "both" modalities or on "image" features alone (linear only).
    """

    def __init__(
        self,
        dim: int,
        classes: int,
        kind: str = "linear",
        cwt: str = "separate",
        rows: str = "both",
    ) -> None:
        super().__init__()
        check_choice("TRAINER.DEPT.HEAD", kind, HEADS)
        check_choice("TRAINER.DEPT.ROWS", rows, ROWS)
        check_choice("TRAINER.DEPT.CWT", cwt, CWTS)
        self.kind, self.rows = kind, rows
        self.cwt_image = nn.Identity() if cwt == "none" else ChannelWiseTransform(dim)
        separate = cwt == "separate"
        self.cwt_text = ChannelWiseTransform(dim) if separate else self.cwt_image
        self.classifier = nn.Linear(dim, classes) if kind == "linear" else None

    def logits(self, features: Features, temperature: torch.Tensor) -> torch.Tensor:
        """(B,C) logits of the images; linear: of the trained classes, similarity: of the texts'."""
        image = self.cwt_image(_full(features.image))
        if self.classifier is not None:
            return self.classifier(image)
        return cosine_logits(image, self.cwt_text(_full(features.text)), temperature)

    def loss(
        self, features: Features, label: torch.Tensor, temperature: torch.Tensor
    ) -> torch.Tensor:
        """Cross entropy, the mean over the image rows and, if trained on, the text rows.

        Row j's text feature is its class's; image-conditioned methods give each image its own.
        """
        logits = self.logits(features, temperature)
        if self.classifier is not None and self.rows == "both":
            text = _full(features.text)
            if text.dim() == 3:
                own = text[torch.arange(len(label), device=label.device), label]
            else:
                own = text[label]
            logits = torch.cat([self.classifier(self.cwt_text(own)), logits])
            label = label.repeat(2)
        return F.cross_entropy(logits, label)

    def resize(self, classes: int) -> None:
        """Make room for a checkpoint's classes; the rows are new only if their number is."""
        if self.classifier is not None and self.classifier.out_features != classes:
            old = self.classifier.weight
            self.classifier = nn.Linear(old.shape[1], classes, device=old.device)


def _full(x: torch.Tensor) -> torch.Tensor:
    """At least fp32: the head's parameters are, whatever the towers run in."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


class DePT(Around):
    """DePT around any method: the same three functions, and a CAT head beside its ITM head.

    Loss: (1−λ) L_ITM + λ L_CAT + the method's other losses at their own weights.
    Test on trained classes: (1−λ) z_ITM + λ z_CAT; on others z_ITM.

    Args:
        method: what it wraps.
        head: the CAT head, for the classes of `method`.
        weight: λ.
        fusion: "logits" as the released code; "prob" fuses probabilities as the paper's formula
            does (the logits are then their logarithms); "none": the CAT head alone.
        lr_mult: the CAT head's learning rate in units of the method's.
    """

    label_fit = ()  # no DePT around DePT
    weight: torch.Tensor

    def __init__(
        self,
        method: Method,
        head: CATHead,
        weight: float = 0.7,
        fusion: str = "logits",
        lr_mult: float = 6.5,
    ) -> None:
        super().__init__(method)
        if not 0 <= weight <= 1:
            raise UserError(f"TRAINER.DEPT.WEIGHT is {weight}; λ lies between 0 and 1")
        self.cat = head
        # A tensor, so that runs of several λ can be trained as one.
        self.register_buffer("weight", torch.tensor(weight, dtype=torch.float64), persistent=False)
        check_choice("TRAINER.DEPT.FUSION", fusion, FUSIONS)
        self.fusion = fusion
        self.lr_mult = lr_mult
        # Rows of W for the classes of this run; None where one was never trained.
        self.rows: list[int] | None = list(range(len(self.classes.keys)))

    @classmethod
    def around(cls, cfg: CfgNode, method: Method) -> DePT:
        """Wrap `method` as the config says."""
        c = cfg.TRAINER.DEPT
        if method.classes.further:
            raise UserError("DePT's head is for one data set's classes: empty DATASET.FURTHER")
        head = CATHead(method.encoders.embed_dim, len(method.classes.keys), c.HEAD, c.CWT, c.ROWS)
        return cls(method, head, c.WEIGHT, c.FUSION, c.LR_MULT)

    def losses(self, features: Features, label: torch.Tensor) -> dict[str, torch.Tensor]:
        """L = (1−λ) L_ITM + λ L_CAT (arXiv 2309.07439), by name; and the method's others.

        L_ITM is what the method's `label_fit` names, L_CAT = `CATHead.loss`. label: (B,).

        Raises:
            UserError: the method doesn't give what it names, or gives a loss called "cat".
        """
        losses = self.method.losses(features, label)
        fit = self.method.label_fit
        if not set(fit) <= set(losses) or "cat" in losses:
            raise UserError(
                f"{type(self.method).__name__} declares {', '.join(fit)} as its fit to the labels, "
                f"and gives {', '.join(losses)}: its label_fit must name some, and cat is DePT's"
            )
        cat = self.cat.loss(features, label, self.encoders.temperature)
        return {**losses, **{name: self._fit(losses[name]) for name in fit}, "cat": self._cat(cat)}

    def logits(self, features: Features) -> torch.Tensor:
        """(B,C) scores: on trained classes both heads', on others z_ITM alone.

        Fused z = (1−λ) z_ITM + λ z_CAT as the released code, or as the paper (arXiv 2309.07439)
        log p, p = (1−λ) p_ITM + λ p_CAT.
        """
        itm = self.method.logits(features)
        if self.rows is None:
            return itm
        cat = self.cat.logits(features, self.encoders.temperature)
        if self.cat.classifier is not None:
            cat = cat[:, self.rows]
        if self.fusion == "none":
            return cat
        if self.fusion == "prob":
            itm, cat = itm.softmax(dim=-1), cat.softmax(dim=-1)
        itm, cat = self._fit(itm), self._cat(cat)
        return (itm + cat).log() if self.fusion == "prob" else itm + cat

    def _fit(self, x: torch.Tensor) -> torch.Tensor:
        """(1−λ) x."""
        return (1 - self.weight).to(x.dtype) * x

    def _cat(self, x: torch.Tensor) -> torch.Tensor:
        """λ x."""
        return self.weight.to(x.dtype) * x

    def trained(self) -> dict[str, nn.Parameter]:
        """What the method trains, and the CAT head's parameters as cat.…."""
        head = {f"cat.{name}": p for name, p in self.cat.named_parameters()}
        return {**self.method.trained(), **head}

    def names(self) -> dict[str, str]:
        """As the method's; the CAT head's names stay."""
        head = {name: name for name in self.trained() if name.startswith("cat.")}
        return {**self.method.names(), **head}

    def param_groups(self, lr: float) -> list[dict]:
        """The method's groups, and the CAT head at `lr` × LR_MULT."""
        groups = self.method.param_groups(lr)
        head = list(self.cat.parameters())
        return groups + ([{"params": head, "lr": lr * self.lr_mult}] if head else [])

    @torch.no_grad()
    def load_trained(
        self, state: dict[str, torch.Tensor], keys: Sequence[str] | None, partial: bool = False
    ) -> list[str]:
        """As the method's; the head keeps the classes of the checkpoint, and applies by identity.

        All classes of this run were trained → fusion, on their rows; otherwise the ITM head alone,
        which is said.
        As a start for training (`partial`) the rows of this run's classes are taken, if all exist.
        """
        head = {name: value for name, value in state.items() if name.startswith("cat.")}
        rest = {name: value for name, value in state.items() if name not in head}
        taken = self.method.load_trained(rest, keys, partial)
        bound = [name for name in head if name.startswith("cat.classifier.")]
        trained = len(head[bound[0]]) if bound else len(keys or self.classes.keys)
        if not partial:
            self.cat.resize(trained)
            self._check_head(head)
            self.rows, why = self._rows_of(keys, trained)
            if self.rows is None:
                self.left_out = f"The CAT head is left out: {why}; the ITM head alone is used"
                print(self.left_out)
                return taken
        elif bound:
            rows, why = self._rows_of(keys, trained)
            if rows is None:
                print(f"The CAT head's classifier is left out: {why}; it starts anew")
            of_classes = {name: head.pop(name) for name in bound}
            head |= {name: value[rows] for name, value in of_classes.items() if rows is not None}
        if partial:
            self._check_head(head, partial)
            self.rows = list(range(len(self.classes.keys)))
        own = self.trained()
        for name, value in head.items():
            own[name].copy_(value)
        return [*taken, *head]

    def _rows_of(self, keys: Sequence[str] | None, trained: int) -> tuple[list[int] | None, str]:
        """This run's classes among the `trained` ones of a head; None, and why, if not all are."""
        own = self.classes.keys
        if keys is None and trained == len(own):
            print(f"The CAT head's {trained} classes are {ASSUMED}")
            return list(range(trained)), ""
        if keys is None:
            return None, (
                f"the checkpoint doesn't tell which {trained} classes it is for, and this run has "
                f"{len(own)}"
            )
        why = untrained_classes(own, keys or ())
        return (None, why) if why else (rows_of(own, keys or ()), "")

    def _check_head(self, head: dict[str, torch.Tensor], partial: bool = False) -> None:
        """Raise UserError unless the head's values fit, or with `partial` those there are."""
        own = {f"cat.{name}": p for name, p in self.cat.named_parameters()}
        for name in own | head:
            here = tuple(own[name].shape) if name in own else "nothing"
            there = tuple(head[name].shape) if name in head else "nothing"
            if here != there and not (partial and name not in head):
                raise UserError(
                    f"{name}: the checkpoint has {there}, this run {here}: set TRAINER.DEPT.* "
                    "(HEAD, CWT) and the trainer as in training"
                )


class DePTMixin(PromptTrainer):
    """Turns a method's trainer into DePT around it: `class DePT_X(DePTMixin, X)`."""

    model_name = "PromptLearner"
    bare: type[PromptTrainer]  # X

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "bare" not in vars(cls):
            bases = (base for base in cls.__mro__[1:] if not issubclass(base, DePTMixin))
            cls.bare = next(base for base in bases if issubclass(base, PromptTrainer))
        if cls.may_differ:
            cls.may_differ = (*cls.bare.may_differ, "TRAINER.DEPT.WEIGHT")

    @classmethod
    def config_nodes(cls) -> tuple[str, ...]:
        """The method's own, and DEPT."""
        return (*super().config_nodes(), "DEPT")

    @classmethod
    def build_method(cls, cfg: CfgNode, encoders: Encoders, classes: Classes) -> Method:
        """DePT around what the method's trainer builds. Raises as `DePT.around`."""
        return DePT.around(cfg, super().build_method(cfg, encoders, classes))


# Folders of the released DePT code's checkpoints, where they aren't `DePTMixin.model_name`.
_FOLDERS = {"MaPLe": "MultiModalPromptLearner", "PromptSRC": "VLPromptLearner"}
_FOLDERS |= dict.fromkeys(("CaPT_CoOp", "CaPT_KgCoOp", "SkipT"), "learnable_params")

_ROWS_ALONE = (
    "trains rows of its classes' own alone, and tests other classes zero-shot: they share nothing "
    "that DePT could decouple"
)
_NO_FIT = "declares no loss that fits the labels: there is nothing to decouple"


def can_be_wrapped(trainer: type) -> bool:
    """Whether a trainer's losses fit the labels, and train more than rows of its classes' own."""
    bare = issubclass(trainer, PromptTrainer) and not issubclass(trainer, DePTMixin)
    method = getattr(trainer, "method_class", DePT)
    return bare and bool(method.label_fit) and not method.zero_shot_rows


def twin_of(trainer: type[PromptTrainer]) -> type[PromptTrainer]:
    """`class DePT_X(DePTMixin, X)`."""
    contents = {
        "__doc__": f"DePT on {trainer.__name__}.",
        "__module__": trainer.__module__,  # it comes and goes with X
        "bare": trainer,
        "model_name": _FOLDERS.get(trainer.__name__, DePTMixin.model_name),
    }
    return type(wrapped_name(trainer.__name__), (DePTMixin, trainer), contents)


def register_twins() -> None:
    """Register DePT around every registered trainer that it can be around, if it isn't there."""
    for name in TRAINER_REGISTRY.registered_names():
        trainer = TRAINER_REGISTRY.get(name)
        method = getattr(trainer, "method_class", DePT)
        if can_be_wrapped(trainer):
            enter(twin_of(trainer), DePTMixin)
        elif method.zero_shot_rows or not method.label_fit:
            why = _ROWS_ALONE if method.zero_shot_rows else _NO_FIT
            TRAINER_REGISTRY.refuse(wrapped_name(name), f"{name} {why}")


if not TYPE_CHECKING:

    def __getattr__(name: str) -> type[PromptTrainer]:
        """`from trainers.dept import DePT_X`."""
        if is_wrapped(name):
            modules()
            if name in TRAINER_REGISTRY:
                return TRAINER_REGISTRY.get(name)
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
