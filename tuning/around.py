"""A method around a method: what it passes on, and how its trainers are registered.

Shape letters: method.py's.
"""

from __future__ import annotations

import copy
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from clip.prompting import Reads
from dassl.config import CfgNode
from dassl.engine import TRAINER_REGISTRY

from .method import Features, Method
from .step import OwnStep
from .trainer import PromptTrainer
from .training_data import TrainingData


class Around(Method):
    """A method around another: unless it says otherwise all is as that one has it.

    Args:
        method: what it is around.
    """

    def __init__(self, method: Method) -> None:
        super().__init__(method.encoders, method.classes)
        self.method = method
        self.words, self.tail = method.words, method.tail
        self.image_tower_untouched = method.image_tower_untouched
        self.compares_with_frozen_image = method.compares_with_frozen_image
        self.views_wanted, self.sees = method.views_wanted, method.sees
        self.teacher_run = method.teacher_run

    def encode_image(self, image: torch.Tensor) -> torch.Tensor:
        """As the method's: (B,3,I,I) → (B,D)."""
        return self.method.encode_image(image)

    def settled(self) -> Method:
        """This around what the method is settled to."""
        settled, found = self.method.settled(), copy.copy(self)
        found._modules = {**self._modules, "method": settled}
        return self if settled is self.method else found

    def image_reads(self) -> Reads:
        """As the method's."""
        return self.method.image_reads()

    def image_layer(self) -> int | None:
        """As the method's."""
        return self.method.image_layer()

    def prepare(self, data: TrainingData) -> None:
        """As the method's."""
        self.method.prepare(data)

    def chosen(self) -> dict[str, float | str]:
        """As the method's."""
        return self.method.chosen()

    def remember_start(self) -> None:
        """As the method's."""
        self.method.remember_start()

    def prepared_state(self) -> dict[str, torch.Tensor]:
        """As the method's."""
        return self.method.prepared_state()

    def load_prepared(self, state: Mapping[str, torch.Tensor], keys: Sequence[str] | None) -> None:
        """As the method's."""
        self.method.load_prepared(state, keys)

    def has_own_step(self) -> bool:
        """As the method's."""
        return self.method.has_own_step()

    def draws(self) -> bool:
        """As the method's."""
        return self.method.draws()

    def drawn(self, generator: torch.Generator | None, progress: float) -> dict[str, torch.Tensor]:
        """As the method's."""
        return self.method.drawn(generator, progress)

    def asks_for_images(self) -> bool:
        """As the method's."""
        return self.method.asks_for_images()

    def further_images(
        self,
        image: torch.Tensor,
        label: torch.Tensor,
        places: Sequence[Sequence[int]],
        generator: torch.Generator | None,
    ) -> list[int]:
        """As the method's."""
        return self.method.further_images(image, label, places, generator)

    def own_step(self, batch: dict[str, torch.Tensor], own: OwnStep) -> dict[str, torch.Tensor]:
        """The method's; `own.losses` gives the losses of what is around it."""
        return self.method.own_step(batch, own)

    def before_epoch(self, epoch: int, epochs: int) -> None:
        """As the method's."""
        self.method.before_epoch(epoch, epochs)

    def as_start(self, state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """As the method's."""
        return self.method.as_start(state)

    def from_original(self, state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """As the method's."""
        return self.method.from_original(state)

    def own_optimizers(self, c: CfgNode) -> dict[str, tuple[Optimizer, LRScheduler | None]]:
        """As the method's."""
        return self.method.own_optimizers(c)

    def text_features(self) -> torch.Tensor:
        """As the method's: (C,D)."""
        return self.method.text_features()

    def forget_text(self) -> None:
        """As the method's."""
        self.method.forget_text()

    def features(self, image: torch.Tensor, **known: torch.Tensor) -> Features:
        """As the method's; `known` are the features it may be handed."""
        return self.method.features(image, **known)

    def trained(self) -> dict[str, nn.Parameter]:
        """As the method's."""
        return self.method.trained()

    def names(self) -> dict[str, str]:
        """As the method's."""
        return self.method.names()

    def param_groups(self, lr: float) -> list[dict]:
        """As the method's."""
        return self.method.param_groups(lr)

    def check_source(self, settings: Mapping[str, Any]) -> None:
        """As the method's."""
        self.method.check_source(settings)


def copy_of(method: Method) -> Method:
    """A copy of a method on the same encoders, frozen, in eval mode."""
    method.forget_text()
    shared = {id(part): part for part in (method.encoders, method.classes)}
    copied = copy.deepcopy(method, shared)
    copied._text_states = {}  # known by the original's layouts
    copied.requires_grad_(False)
    return copied.eval()


def enter(twin: type[PromptTrainer], mixin: type[PromptTrainer]) -> None:
    """Register a trainer that `mixin` makes of another, unless one of the mixin's is there.

    Another trainer that has its name is left out, in a line.
    """
    name = twin.__name__
    if name in TRAINER_REGISTRY:
        taken = TRAINER_REGISTRY.get(name)
        if issubclass(taken, mixin):
            return
        what = mixin.__name__.removesuffix("Mixin")
        line = f"{taken.__module__}'s {name} left out: it is the name of {what} around "
        print(f"{line}{twin.__bases__[1].__name__}", file=sys.stderr)
    TRAINER_REGISTRY.register(twin, force=True)
