"""DPC: Dual-Prompt Collaboration (Li et al., CVPR 2025, arXiv 2503.13443).

A plug-in around a method X all of whose trained parameters are prompts. Stage 1 trains X: the
tuned prompt P. Stage 2 goes on from a copy of it, the parallel prompt P′, on the base classes and
against hard negatives; P stays as it is. Then the two are mixed, each test by its classes:

    trained classes: ω_b P′ + (1−ω_b) P        others: ω_n P′ + (1−ω_n) P,  ω_n = 0: P itself

The mixture is one of parameters: X's prompts, every one. New classes are tested as after stage 1,
so all that DPC can gain is on the trained ones.

A step of stage 2. P ranks the classes for each of the B images; of the first K those that are
wrong are its negatives, unless the batch has the class already. Each brings one training image of
its class. Of the n pairs of an image and its class's text, f_i and e_i,

    L = −1/2n Σ_i [log softmax_j(τ f̂_i·ê_j)_i + log softmax_j(τ f̂_j·ê_i)_i]

in place of X's fit to the labels. X's other losses are left out, as the public code leaves out
PromptKD's (REGULARIZE keeps them at their own weights). What X's trainer does with its parameters
it does with P′: PromptSRC's are averaged over the epochs of stage 2, too.

Stage 1 is trained in <output>/stage1 with this run's settings, changed by TRAINER.DPC.STAGE1, and
is a run of X like any other; or MODEL.INIT_WEIGHTS names a run of X's checkpoint, or one of its
public code. P is kept in the checkpoint, as tuned.….

What the public code (JREion/DPC, 01e6b59) does otherwise than the paper, and what we do:
- Its parameter is the mixture M = ω P′ + (1−ω) P, and each pass, a test's too, takes P′ = (M −
  (1−ω) P)/ω: on base classes P′ alone is tested, which here is WEIGHT 1. On new ones it is P, ours.
- So an SGD step moves P′ by 1/ω² of the learning rate. We train P′ with LR_MULT = 4 of it, as at
  its ω = .5; a warm-up's constant rate is P′'s as it is. Weight decay there is M's, here P′'s.
- An image whose class isn't among the first K has K negatives, not K−1; ours, too.
- An image with fewer than two negatives gets random classes, up to two, even for K = 2; ours, too,
  but from all classes: there the first and the last never come.
- Images of one class in a batch are each other's negatives. We leave that.
- A step whose first image has no negative stops with an error there.
- Negatives' images come from a file with a list of them, which needn't keep to the few shots, at a
  fresh view for each draw. Ours are the run's training images, at this epoch's view.
As released it doesn't run: two of its files, and an argument, are missing. Its checkpoints hold M
alone. They can be tested here with MODEL.INIT_WEIGHTS naming that of P.

Shape letters: tuning/method.py's; K the ranks looked at, n pairs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F

from clip.prompting import Encoders
from dassl.config import CfgNode, declare_checks, public, real, whole
from dassl.engine import TRAINER_REGISTRY
from dassl.utils import UserError, load_checkpoint
from tuning.around import Around, copy_of, enter
from tuning.method import Classes, Features, Method, cosine_logits
from tuning.naming import parallel_name
from tuning.saved import ASSUMED, untrained_classes
from tuning.stages import stage_cfg, train_stage
from tuning.trainer import PromptTrainer

_FEWEST = 2  # negatives of an image


def extend_cfg(cfg: CfgNode) -> None:
    """Declare TRAINER.DPC, and the public code's names for its keys."""
    cfg.TRAINER.DPC = CfgNode()
    cfg.TRAINER.DPC.WEIGHT = 0.5  # ω_b
    cfg.TRAINER.DPC.WEIGHT_FOR_NEW = 0.0  # ω_n
    cfg.TRAINER.DPC.TOPK = 8  # K
    cfg.TRAINER.DPC.LR_MULT = 4.0  # learning rate of P′; 1/ω² is the public code's
    cfg.TRAINER.DPC.REGULARIZE = False  # whether X's other losses stay
    # KEY, VALUE, …: what stage 1 changes of this run's settings.
    cfg.TRAINER.DPC.STAGE1 = ()
    public(cfg, "SPLE.STACK.WEIGHT", "TRAINER.DPC.WEIGHT")
    public(cfg, "SPLE.STACK.WEIGHT_FOR_NEW", "TRAINER.DPC.WEIGHT_FOR_NEW")
    public(cfg, "SPLE.INFER_TOPK", "TRAINER.DPC.TOPK")
    why = "stage 1 is trained here, or MODEL.INIT_WEIGHTS names its checkpoint"
    for key in ("BACK_CKPT_PATH", "BACK_CKPT_EPOCH"):
        public(cfg, f"SPLE.{key}", None, why)
    public(cfg, "SPLE.PIC_LIB", None, "negatives are images of the run's training list")
    for key in ("STACK.MODE", "STACK.LOOP_DEPTH", "INFER_NONREPEAT", "LOSS_KD_WEIGHT"):
        public(cfg, f"SPLE.{key}", None, "there is one way: its usual one")
    for key in ("SPLE_INIT", "SPLE_BASE_TRAIN"):
        public(cfg, f"SPLE.SPLE_TRAINER.{key}", None, "P′ starts from P, and is trained")
    declare_checks(
        {
            "TRAINER.DPC.WEIGHT": real(0, 1),
            "TRAINER.DPC.WEIGHT_FOR_NEW": real(0, 1),
            "TRAINER.DPC.TOPK": whole(2),
            "TRAINER.DPC.LR_MULT": real(above=0),
        }
    )


class DPC(Around):
    """DPC around a method: `method` has P′, `tuned` P.

    Args:
        method: X.
        weight, weight_for_new: ω_b, ω_n.
        topk: K.
        lr_mult: the learning rate of P′, in the optimizer's.
        regularize: whether X's losses that don't fit labels stay.
    """

    label_fit = ("pairs",)

    def __init__(
        self,
        method: Method,
        weight: float = 0.5,
        weight_for_new: float = 0.0,
        topk: int = 8,
        lr_mult: float = 4.0,
        regularize: bool = False,
    ) -> None:
        super().__init__(method)
        self.tuned = copy_of(method)
        self.weight, self.weight_for_new = weight, weight_for_new
        self.topk, self.lr_mult, self.regularize = topk, lr_mult, regularize
        self.compares_with_frozen_image = method.compares_with_frozen_image and regularize
        self.has_tuned = False  # whether P is more than a start
        self.all_trained = True  # whether this run's classes all were
        self._mixture: list[Any] = [None, None]  # of which values, and X with their mean

    @classmethod
    def around(cls, cfg: CfgNode, method: Method) -> DPC:
        """Wrap `method` as the config says.

        Raises:
            UserError: there are further data sets.
        """
        c = cfg.TRAINER.DPC
        if method.classes.further:
            raise UserError("DPC's negatives are of one data set: empty DATASET.FURTHER")
        return cls(method, c.WEIGHT, c.WEIGHT_FOR_NEW, c.TOPK, c.LR_MULT, c.REGULARIZE)

    def train(self, mode: bool = True) -> DPC:
        """As every method's; P stays in eval mode, and X where its own losses aren't asked for."""
        super().train(mode)
        self.tuned.eval()
        if not self.regularize:
            self.method.eval()
        return self

    # The prompt.

    def prompted(self) -> Method:
        """X with the prompt at hand: in training P′, else the mixture for this run's classes."""
        weight = self.weight if self.all_trained else self.weight_for_new
        if self.training or weight == 1:
            return self.method
        return self._mixed(weight) if weight else self.tuned

    def settled(self) -> Method:
        """X with the prompt at hand."""
        return self.prompted().settled()

    @torch.no_grad()
    def _mixed(self, weight: float) -> Method:
        """X with ω P′ + (1−ω) P, made anew when one of them has changed."""
        own, tuned = self.method.trained(), self.tuned.trained()
        parameters = (*own.values(), *tuned.values())
        state = weight, [(p.data_ptr(), p._version, p.device, p.dtype) for p in parameters]
        if self._mixture[0] != state:
            mixture = copy_of(self.method)
            for name, p in mixture.trained().items():
                p.copy_(weight * own[name] + (1 - weight) * tuned[name])
            # In a list: it is no part of this module.
            self._mixture = [state, mixture]
        return self._mixture[1]

    def forget_text(self) -> None:
        """As the method's, of every prompt."""
        self.method.forget_text()
        self.tuned.forget_text()
        self._mixture = [None, None]

    def encode_image(self, image: torch.Tensor) -> torch.Tensor:
        """As the method's: (B,3,I,I) → (B,D)."""
        return self.prompted().encode_image(image)

    def encode_text(self) -> torch.Tensor:
        """As the method's: (C,D)."""
        return self.prompted().encode_text()

    def text_features(self) -> torch.Tensor:
        """As the method's: (C,D)."""
        return self.prompted().text_features()

    def features(self, image: torch.Tensor, **known: torch.Tensor) -> Features:
        """As the method's; `known` are the features it may be handed."""
        return self.prompted().features(image, **known)

    def logits(self, features: Features) -> torch.Tensor:
        """As the method's: (B,C)."""
        return self.prompted().logits(features)

    # Training.

    def losses(self, features: Features, label: torch.Tensor) -> dict[str, torch.Tensor]:
        """L as "pairs", and with REGULARIZE X's losses that don't fit labels; label (n,)."""
        logits = cosine_logits(
            features.image, features.text[label], self.encoders.temperature
        )  # (n,n)
        own = torch.arange(len(label), device=label.device)
        pairs = (F.cross_entropy(logits, own) + F.cross_entropy(logits.t(), own)) / 2
        if not self.regularize:
            return {"pairs": pairs}
        others = self.method.losses(features, label)
        fit = self.method.label_fit
        return {"pairs": pairs, **{k: v for k, v in others.items() if k not in fit}}

    def asks_for_images(self) -> bool:
        """It does."""
        return True

    def further_images(
        self,
        image: torch.Tensor,
        label: torch.Tensor,
        places: Sequence[Sequence[int]],
        generator: torch.Generator | None,
    ) -> list[int]:
        """The negatives' images: of each negative class one, at random."""
        ranked = self.tuned.logits(self.tuned.features(image))
        top = ranked.topk(min(self.topk, ranked.shape[1]), dim=1).indices.tolist()
        device = generator.device if generator is not None else None
        order = torch.randperm(len(places), generator=generator, device=device).tolist()
        found = negatives(top, label.tolist(), [c for c in order if places[c]])
        classes = [c for c in found if places[c]]
        share = torch.rand(len(classes), generator=generator, device=device, dtype=torch.float64)
        return [
            places[c][int(u * len(places[c]))] for c, u in zip(classes, share.tolist(), strict=True)
        ]

    def param_groups(self, lr: float) -> list[dict]:
        """The method's, at `lr` × LR_MULT."""
        return self.method.param_groups(lr * self.lr_mult)

    # Checkpoints.

    def prepared_state(self) -> dict[str, torch.Tensor]:
        """As the method's, and P as tuned.…."""
        tuned = {f"tuned.{name}": value for name, value in self.tuned.trained_state().items()}
        return {**self.method.prepared_state(), **tuned}

    def load_prepared(self, state: Mapping[str, torch.Tensor], keys: Sequence[str] | None) -> None:
        """Put `prepared_state` back.

        Raises:
            UserError: there is no P in it, or it is of another method.
        """
        tuned = {
            name.partition(".")[2]: value
            for name, value in state.items()
            if name.startswith("tuned.")
        }
        if not tuned:
            raise UserError(
                "the checkpoint has no tuned prompt: it is of another method, or of stage 1 "
                "(which MODEL.INIT_WEIGHTS takes)"
            )
        self.tuned.load_trained(tuned, keys)
        self.has_tuned = True
        rest = {name: value for name, value in state.items() if not name.startswith("tuned.")}
        self.method.load_prepared(rest, keys)

    @torch.no_grad()
    def load_trained(
        self, state: dict[str, torch.Tensor], keys: Sequence[str] | None, partial: bool = False
    ) -> list[str]:
        """As the method's, for P′; which prompt is tested follows from the classes.

        A start for training (`partial`) is P, whole, and P′ begins there.
        """
        taken = self.method.load_trained(state, keys, partial)
        if partial:
            own, tuned = self.method.trained(), self.tuned.trained()
            if lacking := [name for name in own if name not in taken]:
                raise UserError(f"the tuned prompt must be whole: it lacks {', '.join(lacking)}")
            for name, p in tuned.items():
                p.copy_(own[name])
            self.has_tuned = True
            return taken
        why = "" if keys is None else untrained_classes(self.classes.keys, keys)
        if keys is None:
            print(f"The parallel prompt's classes are {ASSUMED}")
        self.all_trained = not why
        if why:
            used = f"mixed by {self.weight_for_new:g}" if self.weight_for_new else "left out"
            self.left_out = f"The parallel prompt is {used}: {why}"
            print(self.left_out)
        return taken

    def from_original(self, state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """P′ = (M − (1−ω) P)/ω of the public code's M.

        Raises:
            UserError: P isn't known, or ω is 0.
        """
        if not self.has_tuned or not self.weight:
            raise UserError(
                "the public code's checkpoint has the mixture of both prompts alone: name that of "
                "its stage 1 by MODEL.INIT_WEIGHTS, and its weight by TRAINER.DPC.WEIGHT"
            )
        print(f"Taken for the mixture of both prompts, by {self.weight:g}")
        tuned, names = self.tuned.trained(), self.names()
        return {
            name: (value.to(p) - (1 - self.weight) * p) / self.weight
            if name in names and (p := tuned[names[name]]).shape == value.shape
            else value
            for name, value in state.items()
        }


def negatives(
    top: Sequence[Sequence[int]], labels: Sequence[int], spare: Sequence[int]
) -> list[int]:
    """The classes of a batch's negatives, image by image; no class twice, none of the labels.

    top: of each image the classes ranked first. labels: of the images. spare: classes in random
    order, of which an image with fewer than two negatives takes more.
    """
    taken = set(labels)
    found = []
    for ranked in top:
        new = [c for c in ranked if c not in taken]
        taken.update(new)
        more = [c for c in spare if c not in taken][: max(0, _FEWEST - len(new))]
        taken.update(more)
        found += new + more
    return found


class DPCMixin(PromptTrainer):
    """Turns a method's trainer into DPC around it: `class DPC_X(DPCMixin, X)`."""

    first: type[PromptTrainer]  # X, of stage 1
    described_in = __name__

    @classmethod
    def own_step(cls) -> list[str]:
        """As every trainer's; batches grow by what is in them, so no two are of one size."""
        return [*super().own_step(), "DPC.further_images"]

    @classmethod
    def config_nodes(cls) -> tuple[str, ...]:
        """The method's own, and DPC."""
        return (*super().config_nodes(), "DPC")

    @classmethod
    def build_method(cls, cfg: CfgNode, encoders: Encoders, classes: Classes) -> Method:
        """DPC around what the method's trainer builds. Raises as `DPC.around`."""
        return DPC.around(cfg, super().build_method(cfg, encoders, classes))

    def check_cfg(self, cfg: CfgNode) -> None:
        """As every trainer's; raises UserError for a STAGE1 that no stage 1 can have."""
        super().check_cfg(cfg)
        self.stages_of(cfg)

    @classmethod
    def stages_of(cls, cfg: CfgNode) -> list[CfgNode]:
        """Stage 1's, unless P is given. Raises as `stage_cfg`."""
        if cfg.MODEL.INIT_WEIGHTS:
            return []
        changes = cfg.TRAINER.DPC.STAGE1
        return [stage_cfg(cfg, cls.first.__name__, changes, "TRAINER.DPC.STAGE1")]

    def initialize_from(self, path: str) -> None:
        """Take P of a run of X; raises UserError for another trainer's."""
        trainer = load_checkpoint(path).get("trainer")
        if trainer not in (None, self.first.__name__):
            raise UserError(
                f"{path} is of a run of {trainer}; {type(self).__name__} starts from one of "
                f"{self.first.__name__}"
            )
        super().initialize_from(path)

    def before_train(self) -> None:
        """As every trainer's, after stage 1, unless a run goes on or P is given."""
        goes_on = self.cfg.RESUME or (not self.cfg.OVERWRITE and self._records.unfinished())
        if self.cfg.MODEL.INIT_WEIGHTS:
            print("The tuned prompt is that of MODEL.INIT_WEIGHTS: no stage 1")
        elif not goes_on:
            (stage,) = self.stages_of(self.cfg)
            self.initialize_from(str(train_stage(stage, self.cfg)))
        super().before_train()


def why_not(trainer: type) -> str:
    """Why DPC can't be around a trainer, in a line that goes on after its name; "" if it can."""
    if not issubclass(trainer, PromptTrainer) or not hasattr(trainer, "method_class"):
        return "is no method of this code: what of it are prompts isn't known"
    method = trainer.method_class
    if not method.prompt_modules:
        return "declares no prompts (prompt_modules), of which DPC would mix two copies"
    if set(method.prompt_modules) != set(method.trained_modules):
        others = [name for name in method.trained_modules if name not in method.prompt_modules]
        return f"trains more than prompts ({', '.join(others)}): no mean of two is one of these"
    own = ("own_step", "prepare", "drawn", "own_optimizers", "further_images", "before_epoch")
    if found := [name for name in own if getattr(method, name) is not getattr(Method, name)]:
        return f"has a way of its own to train ({', '.join(found)}), which DPC's would replace"
    if method.teacher_key or method.views_wanted != 1:
        return "reads more of a step than its images, which DPC's negatives don't have"
    return ""


def twin_of(trainer: type[PromptTrainer]) -> type[PromptTrainer]:
    """`class DPC_X(DPCMixin, X)`."""
    contents = {
        "__doc__": f"DPC on {trainer.__name__}.",
        "__module__": trainer.__module__,  # it comes and goes with X
        "first": trainer,
    }
    return type(parallel_name(trainer.__name__), (DPCMixin, trainer), contents)


def register_twins() -> None:
    """Register DPC around every registered trainer that it can be around, if it isn't there."""
    for name in TRAINER_REGISTRY.registered_names():
        trainer = TRAINER_REGISTRY.get(name)
        if issubclass(trainer, DPCMixin):
            continue
        if why := why_not(trainer):
            TRAINER_REGISTRY.refuse(parallel_name(name), f"{name} {why}")
        else:
            enter(twin_of(trainer), DPCMixin)
