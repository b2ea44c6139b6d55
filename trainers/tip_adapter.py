"""Tip-Adapter and Tip-Adapter-F (Zhang et al., ECCV 2022, arXiv 2207.09519).

A cache beside zero-shot CLIP: keys K ∈ R^{n×D}, a normalized feature of each of n training images
(the mean of AUGMENT_EPOCH augmented views), and their one-hot labels V:

    z = 100 f̂ ẽᵀ + α exp(−β (1 − f̂ Kᵀ)) V

Tip-Adapter trains nothing; -F trains K by cross entropy. Classes without an image in the cache get
nothing from it: they are zero-shot. ẽ is of the data set's own template, on ImageNet the normalized
mean over OpenAI's seven selected ones ("ensemble").

How α and β are chosen (CHOICE), before -F's training:

    leave_one_out  by the accuracy on the training images, each without its own key; where a class
                   has one image alone they are INIT_ALPHA and INIT_BETA
    val            by that on the run's validation images, min(shots, 4) of a class
    fixed          INIT_ALPHA and INIT_BETA; its authors have an α for each data set

The search goes over a grid, β the outer loop; of equals the first is taken. The public code
searches on the whole validation set (on ImageNet that is the test set), takes -F's epoch by the
accuracy on the test images, and reports the better of that and the searched one. Here -F's last
epoch counts. The scale is 100, not the backbone's own τ; LOGIT_SCALE 0 takes that.

MODEL.INIT_WEIGHTS also takes the public code's bare tensors: best_F_<S>shots.pt, K (n,D), or
keys_<S>shots.pt, Kᵀ (D,n), with values_<S>shots.pt, Vᵀ (n,C), in its folder.
"""

from __future__ import annotations

import math
import os
import re
from pathlib import Path

import torch
from torch import nn

from clip.prompting import Encoders
from dassl.config import CfgNode, declare_checks, real, whole
from dassl.engine import TRAINER_REGISTRY
from dassl.utils import UserError, check_choice
from dassl.utils.tensor_files import read_tensors
from tuning.method import Classes, Features, Method, unit
from tuning.saved import ASSUMED
from tuning.templates import TEMPLATES, template_features
from tuning.trainer import PromptTrainer
from tuning.training_data import TrainingData

CHOICES = ("leave_one_out", "val", "fixed")
ADAMW_EPS = 1e-4  # its optimizer's, in place of 1e-8
_ROWS = 1024  # query images at a time
_PUBLIC = re.compile(r"(best_F|keys)_(\d+)shots\.pt")


def extend_cfg(cfg: CfgNode) -> None:
    """Declare TRAINER.TIP_ADAPTER and the ranges of its values."""
    cfg.TRAINER.TIP_ADAPTER = CfgNode()
    cfg.TRAINER.TIP_ADAPTER.CHOICE = "leave_one_out"  # leave_one_out | val | fixed
    cfg.TRAINER.TIP_ADAPTER.INIT_ALPHA = 1.0
    cfg.TRAINER.TIP_ADAPTER.INIT_BETA = 1.0
    cfg.TRAINER.TIP_ADAPTER.SEARCH_SCALE = (20.0, 20.0)  # the grid's ends: of β, of α
    cfg.TRAINER.TIP_ADAPTER.SEARCH_STEP = (40, 40)  # its points, from .1 on
    cfg.TRAINER.TIP_ADAPTER.AUGMENT_EPOCH = 10  # views that a key is the mean of; 0: a test's view
    cfg.TRAINER.TIP_ADAPTER.LOGIT_SCALE = 100.0  # 0: the backbone's own τ
    cfg.TRAINER.TIP_ADAPTER.TEMPLATES = "own"  # own | ensemble
    cfg.TRAINER.TIP_ADAPTER.PREC = "fp16"  # fp32, fp16, bf16, amp
    numbers = ("INIT_ALPHA", "INIT_BETA", "LOGIT_SCALE")
    declare_checks({f"TRAINER.TIP_ADAPTER.{key}": real(0) for key in numbers})
    declare_checks({"TRAINER.TIP_ADAPTER.AUGMENT_EPOCH": whole(0)})


class Cache(nn.Module):
    """keys: K (n,D). values: V by class, (C,n). alpha, beta: ()."""

    values: torch.Tensor
    alpha: torch.Tensor
    beta: torch.Tensor

    def __init__(self, images: int, classes: int, dim: int, trains: bool) -> None:
        super().__init__()
        keys = torch.zeros(images, dim)
        if trains:
            self.keys: torch.Tensor = nn.Parameter(keys)
        else:
            self.register_buffer("keys", keys)
        self.register_buffer("values", torch.zeros(classes, images))
        for name in ("alpha", "beta"):
            self.register_buffer(name, torch.ones(()))

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """f̂ (B,D) → α exp(−β (1 − f̂ Kᵀ)) V, (B,C)."""
        return self.alpha * (self.beta * (image @ self.keys.t() - 1)).exp() @ self.values.t()


def grid(scale: float, steps: int) -> list[float]:
    """Points from .1 on, evenly towards `scale`, which isn't one of them."""
    return [0.1 + i * (scale - 0.1) / steps for i in range(steps)]


class TipAdapterMethod(Method):
    """Zero-shot CLIP and a cache.

    Args:
        cache: K, V, α, β.
        frozen_text: ẽ, (C,D).
        settings: the config node.
    """

    prepared: tuple[str, ...] = ("cache.keys", "cache.values", "cache.alpha", "cache.beta")
    class_bound: tuple[str, ...] = ("cache.values",)
    label_fit: tuple[str, ...] = ()  # nothing is trained
    zero_shot_rows = True
    template_name = "zeroshot"
    frozen_text: torch.Tensor

    def __init__(
        self,
        encoders: Encoders,
        classes: Classes,
        cache: Cache,
        frozen_text: torch.Tensor,
        settings: CfgNode,
    ) -> None:
        super().__init__(encoders, classes)
        self.cache = cache
        self.register_buffer("frozen_text", frozen_text, persistent=False)
        self.settings = settings

    @classmethod
    def from_cfg(cls, cfg: CfgNode, encoders: Encoders, classes: Classes) -> TipAdapterMethod:
        """From TRAINER.TIP_ADAPTER.

        Raises:
            UserError: an unknown CHOICE or TEMPLATES.
        """
        c = cfg.TRAINER.TIP_ADAPTER
        check_choice("TRAINER.TIP_ADAPTER.CHOICE", c.CHOICE, CHOICES)
        check_choice("TRAINER.TIP_ADAPTER.TEMPLATES", c.TEMPLATES, TEMPLATES)
        text = template_features(encoders, classes, c.TEMPLATES, normalized=True)
        trains = bool(cls.trained_modules)
        cache = Cache(classes.images, len(text), text.shape[1], trains)
        return cls(encoders, classes, cache, text, c)

    @classmethod
    def what_it_sees(cls, cfg: CfgNode) -> tuple[str, ...]:
        """Validation images, where they choose."""
        return ("validation_images",) if cfg.TRAINER.TIP_ADAPTER.CHOICE == "val" else ()

    def chosen(self) -> dict[str, float | str]:
        """α and β, where they are chosen."""
        choice, images = self.settings.CHOICE, self.cache.values.sum(dim=1)
        alone = choice == "leave_one_out" and bool((images == 1).any())
        if choice == "fixed" or alone:
            return {}
        found = {name: float(getattr(self.cache, name)) for name in ("alpha", "beta")}
        return {**found, "by": choice}

    def encode_text(self) -> torch.Tensor:
        """ẽ, (C,D)."""
        return self.frozen_text

    def itm_logits(self, features: Features) -> torch.Tensor:
        """z, (B,C)."""
        image = unit(features.image)
        return self._zero_shot(image, features.text) + self.cache(image)

    def _zero_shot(self, image: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
        scale = self.settings.LOGIT_SCALE or self.encoders.temperature
        return scale * image @ unit(text).t()

    def prepare(self, data: TrainingData) -> None:
        """Fill the cache, and choose α and β."""
        c, cache = self.settings, self.cache
        passes = range(c.AUGMENT_EPOCH) if c.AUGMENT_EPOCH else (None,)
        views = [data.features(epoch).float() for epoch in passes]
        cache.keys.copy_(unit(torch.stack(views).mean(dim=0)))
        values = nn.functional.one_hot(data.labels, len(cache.values)).t()
        cache.values.copy_(values.to(cache.values))
        self.choose(data)

    def choose(self, data: TrainingData) -> None:
        """Set α and β for the cache as it is."""
        c, cache = self.settings, self.cache
        cache.alpha.fill_(c.INIT_ALPHA)
        cache.beta.fill_(c.INIT_BETA)
        if c.CHOICE == "leave_one_out":
            if int(cache.values.sum(dim=1).min()) < 2:
                print("A class has one image, which can't be left out: α and β are as set")
            else:
                self._choose(unit(data.features()), data.labels, left_out=True)
        elif c.CHOICE == "val":
            self._choose(*data.validation(), left_out=False)
        print(f"α = {float(cache.alpha):g}, β = {float(cache.beta):g} ({c.CHOICE})")

    def take(self, keys: torch.Tensor, values: torch.Tensor, source: str) -> None:
        """Put a cache in place of the run's own.

        keys: K (n,D), normalized if it isn't trained. values: V (C,n).

        Raises:
            UserError: they are of other classes, images or another backbone.
        """
        for name, own, given in (
            ("keys (n,D)", self.cache.keys, keys),
            ("values (C,n)", self.cache.values, values),
        ):
            if own.shape != given.shape:
                raise UserError(
                    f"{source}: its {name} have shape {tuple(given.shape)}, this run's are "
                    f"{tuple(own.shape)}"
                )
            own.data.copy_(given)

    def _choose(self, image: torch.Tensor, label: torch.Tensor, left_out: bool) -> None:
        """Set α and β to the best of the grid.

        image: (N,D). label: (N,). left_out: they are the cache's, each without its own key.
        """
        c, cache = self.settings, self.cache
        image = unit(image)
        zero_shot = self._zero_shot(image, self.frozen_text)
        of_key = cache.values.argmax(dim=0)
        alphas = grid(c.SEARCH_SCALE[1], c.SEARCH_STEP[1])
        best = -1
        for beta in grid(c.SEARCH_SCALE[0], c.SEARCH_STEP[0]):
            right = [0] * len(alphas)
            for start in range(0, len(image), _ROWS):
                rows = slice(start, start + _ROWS)
                near = (beta * (image[rows] @ cache.keys.t() - 1)).exp()
                if left_out:
                    own = torch.arange(len(near), device=near.device)
                    near[own, own + start] = 0
                cached = torch.zeros_like(zero_shot[rows]).index_add_(1, of_key, near)
                for i, alpha in enumerate(alphas):
                    found = (zero_shot[rows] + alpha * cached).argmax(dim=1)
                    right[i] += int((found == label[rows]).sum())
            if max(right) > best:
                best = max(right)
                cache.alpha.fill_(alphas[right.index(best)])
                cache.beta.fill_(beta)


class TipAdapterFMethod(TipAdapterMethod):
    """And the keys are trained."""

    trained_modules = ("cache",)
    image_bound = ("cache.keys",)
    prepared = ("cache.values", "cache.alpha", "cache.beta")
    label_fit = ("itm",)

    def param_groups(self, lr: float) -> list[dict]:
        """K, with its ε where the optimizer is AdamW."""
        return [{"params": list(self.trained().values()), "lr": lr, "eps": ADAMW_EPS}]


def public_cache(path: str | os.PathLike) -> tuple[torch.Tensor, torch.Tensor] | None:
    """K (n,D) and V (C,n) of the public code's files; None for a file of another name.

    Raises:
        UserError: there are no values beside it, or they aren't of one cache.
    """
    match = _PUBLIC.fullmatch(Path(path).name)
    if not match:
        return None
    beside = Path(path).with_name(f"values_{match[2]}shots.pt")
    keys, values = (read_tensors(file) for file in (path, beside))
    for file, found in ((path, keys), (beside, values)):
        if not torch.is_tensor(found) or found.dim() != 2:
            raise UserError(f"{file} holds no cache of Tip-Adapter: it isn't a matrix")
    keys = (keys.detach().t() if match[1] == "keys" else keys.detach()).float()
    if len(keys) != len(values):
        raise UserError(f"{path} is of {len(keys)} images, {beside} of {len(values)}")
    return keys, values.t().float()


@TRAINER_REGISTRY.register()
class TipAdapter(PromptTrainer):
    """Tip-Adapter: a cache of the training images, nothing trained."""

    method_class = TipAdapterMethod
    config_node = "TIP_ADAPTER"
    model_name = "tip_adapter"

    def check_cfg(self, cfg: CfgNode) -> None:
        """As the engine's.

        Raises:
            UserError: a grid without points.
        """
        super().check_cfg(cfg)
        c = self.method_cfg(cfg)
        if len(c.SEARCH_SCALE) != 2 or len(c.SEARCH_STEP) != 2 or min(c.SEARCH_STEP) < 1:
            raise UserError("TRAINER.TIP_ADAPTER.SEARCH_SCALE and SEARCH_STEP: of β and of α, each")

    @classmethod
    def passes_of(cls, cfg: CfgNode, epochs: int) -> set[int | None]:
        """As every trainer's, with what keys, α and β are made of."""
        c = cls.method_cfg(cfg)
        views: set[int | None] = set(range(c.AUGMENT_EPOCH)) if c.AUGMENT_EPOCH else {None}
        chosen: set[int | None] = {None} if c.CHOICE == "leave_one_out" else set()
        return super().passes_of(cfg, epochs) | views | chosen

    def initialize_from(self, path: str) -> None:
        """As every trainer's; or the public code's tensors, whose rows are this run's in order."""
        public = public_cache(path)
        if public is None:
            return super().initialize_from(path)
        method = self.method
        assert isinstance(method, TipAdapterMethod)
        filled = bool(method.cache.values.any())
        method.take(*public, source=path)
        print(f"Taken from {path}: {len(public[0])} keys; its classes are {ASSUMED}")
        if filled:  # the run's own cache, which α and β were chosen for
            with torch.no_grad():
                method.choose(self.training_data())


@TRAINER_REGISTRY.register()
class TipAdapterF(TipAdapter):
    """Tip-Adapter-F: its keys are trained."""

    method_class = TipAdapterFMethod

    def model_update(self, names: str | list[str] | None = None) -> None:
        """As the engine's; without a warm-up a cosine goes down at each step, not each epoch."""
        super().model_update(names)
        c = self.cfg.OPTIM
        if c.LR_SCHEDULER != "cosine" or c.WARMUP_EPOCH > 0 or c.NAME != "adamw":
            return
        done = self.epoch + (self.batch_idx + 1) / self.num_batches
        rate = c.LR * (1 + math.cos(math.pi * done / self.max_epoch)) / 2
        optimizer = self._optims[self.model_name]
        assert optimizer is not None
        for group in optimizer.param_groups:
            group["lr"] = rate
