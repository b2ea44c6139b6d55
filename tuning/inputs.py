"""What a training or test step is given: images, or what is kept of them, and what was declared.

Shape letters: method.py's.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import cached_property
from typing import Any
from zlib import crc32

import torch

from dassl.config import CfgNode
from dassl.data import DataManager
from dassl.data.data_manager import ImageLoader
from dassl.engine import TrainerX
from dassl.utils import UserError, resolve_seed

from .ahead import Ahead
from .cuda_graphs import ON_HOST
from .feature_cache import Encoder, Part
from .further_data import further_cfgs, in_turn
from .joining import Joining
from .method import Method
from .step import Batch

# Views encoded in one pass of the image tower, on a CPU and on a GPU.
VIEWS_AT_ONCE = (32, 512)
# What a method's `features` takes beside the images, where a batch has it.
_KNOWN = ("frozen_image", "teacher", "dataset")


def resolve_views(cfg: CfgNode, method: type[Method], name: str) -> None:
    """Set DATALOADER.K_TRANSFORMS to the number of views that a method wants.

    Raises:
        UserError: it is set to another.
    """
    wanted, given = method.views_wanted, cfg.DATALOADER.K_TRANSFORMS
    if given not in (1, wanted) and wanted:
        raise UserError(
            f"DATALOADER.K_TRANSFORMS is {given}, but {name} wants {wanted} "
            f"view{'s' if wanted > 1 else ''} of each training image"
        )
    if wanted:
        cfg.DATALOADER.K_TRANSFORMS = wanted


class Inputs(TrainerX):
    """The part of `PromptTrainer` that makes a step's inputs."""

    cfg: CfgNode
    method: Method
    backbone_sha256: str
    precision: str
    ahead: dict[ImageLoader, Ahead]  # by the loader of its views
    encoder: Encoder | None

    def build_data_loader(self) -> None:
        """As the engine's, with the further data sets."""
        super().build_data_loader()
        self.further = [DataManager(cfg) for cfg in further_cfgs(self.cfg)]

    @classmethod
    def steps_of(cls, cfg: CfgNode, batches: int) -> int:
        """The steps of a training, one pass over whose images has so many batches."""
        return cfg.OPTIM.MAX_EPOCH * batches

    @classmethod
    def passes_of(cls, cfg: CfgNode, epochs: int) -> set[int | None]:
        """The passes over the training images, before the first step and in so many epochs.

        An epoch, whose views are drawn, by its number; None: each image as in a test.
        """
        return set(range(epochs))

    @classmethod
    def stages_of(cls, cfg: CfgNode) -> list[CfgNode]:
        """The configs of the runs that a run trains before its own first step."""
        return []

    def _further_loaders(self) -> list[ImageLoader]:
        loaders = [(manager.cfg.DATASET.NAME, manager.train_loader_x) for manager in self.further]
        if missing := [name for name, loader in loaders if loader is None]:
            raise UserError(f"{missing[0]} has no training images")
        return [loader for _, loader in loaders if loader is not None]

    def begin_epoch(self) -> None:
        """As the engine's, of all data sets."""
        super().begin_epoch()
        for manager in self.further:
            manager.set_epoch(self.epoch)

    @property
    def batches_per_epoch(self) -> int:
        """As the engine's, of all data sets."""
        return super().batches_per_epoch + sum(map(len, self._further_loaders()))

    def autocast(self) -> torch.autocast:
        """What the features are computed under."""
        raise NotImplementedError

    def build_encoder(self) -> None:
        """Say what is kept of a view, by what the method declares."""
        self.encoder, self.ahead = None, {}
        self.layer = self.method.image_layer()
        if not self.cfg.MODEL.FAST:
            return
        features = Part(self.encode_views, self._tower("encode_views"))
        parts = {}
        if self.layer is None:
            parts["img"] = features
        elif self.layer > 0:
            tower = {**self._tower("encode_below"), "layer": self.layer}
            parts["img"] = Part(self.encode_below, tower, f"Image tokens before layer {self.layer}")
        if self.method.compares_with_frozen_image and self.layer is not None:
            parts["frozen_image"] = features
        if parts:
            self.encoder = Encoder(self.cfg, parts, self.device)

    def _tower(self, code: str) -> dict[str, Any]:
        return {
            "backbone": self.backbone_sha256,
            "precision": self.precision,
            "code": getattr(type(self), code).__qualname__,
        }

    def take_teacher(self) -> None:
        """Have the teacher's logits of each training view kept; named here, as it is read now."""
        teacher = self.method.teacher_run
        if teacher is None:
            return
        logits = Part(teacher.logits, teacher.source(), "The teacher's logits")
        if self.cfg.MODEL.FAST:
            self.encoder = self.encoder or Encoder(self.cfg, {}, self.device)
            self.encoder.parts["teacher"] = logits
        print(f"Teacher: {teacher.run.folder}")

    @torch.no_grad()
    def encode_views(self, image: torch.Tensor) -> torch.Tensor:
        """(B,3,I,I) → (B,D) features of views whose features no training step changes."""
        with self.autocast():
            return self.method.encoders.image(image)

    @torch.no_grad()
    def encode_below(self, image: torch.Tensor) -> torch.Tensor:
        """(B,3,I,I) → (B,L,W) tokens before the first layer that the method changes or reads."""
        assert self.layer is not None
        with self.autocast():
            return self.method.encoders.image.below(image, self.layer)

    def training_batches(self) -> Iterable[dict]:
        """The epoch's batches, with what is kept of each view: as features, tokens or logits."""
        batches = super().training_batches()
        if self.method.asks_for_images():
            return self.joining.noted(self._encoded(batches))
        if self.further:
            loaders = [batches, *self._further_loaders()]
            return in_turn([self._encoded(loader) for loader in loaders])
        return self._encoded(batches)

    def _encoded(self, batches: Iterable[dict]) -> Iterable[dict]:
        """The batches of one loader."""
        if self.encoder is None or not isinstance(batches, ImageLoader):
            return batches
        views = self.cfg.DATALOADER.TRAIN_X.BATCH_SIZE * self.cfg.DATALOADER.K_TRANSFORMS
        at_once = max(1, VIEWS_AT_ONCE[self.device.type == "cuda"] // views)
        if not self.encodes_beside_training:
            return self.encoder.batches(batches, at_once)
        if batches not in self.ahead:
            self.ahead[batches] = Ahead(self.encoder, batches, at_once, self.max_epoch)
        return self.ahead[batches].batches(self.epoch)

    def end_loading(self) -> None:
        """As the engine's; what is encoded beside training ends before its workers do."""
        for ahead in self.ahead.values():
            ahead.close()
        for manager in (*self.further, self.dm):
            manager.close()

    @property
    def encodes_beside_training(self) -> bool:
        """Whether the next views are encoded while the steps use those before.

        Only where workers draw them: drawn here they would change what training draws.
        """
        return self.cfg.DATALOADER.NUM_WORKERS > 0

    def testing_batches(self, loader: Iterable[dict]) -> Iterable[dict]:
        """As `training_batches`, for evaluation."""
        if self.encoder is None or not isinstance(loader, ImageLoader):
            return loader
        if "img" not in self.encoder.parts:
            return loader
        # On a CPU a batch is enough at once; and its numbers stay what they were.
        on_gpu = self.device.type == "cuda"
        batch = self.cfg.DATALOADER.TEST.BATCH_SIZE
        at_once = max(1, VIEWS_AT_ONCE[True] // batch) if on_gpu else 1
        return self.encoder.batches(loader, at_once, names=["img"])

    def step_inputs(self, batch: dict) -> Batch:
        """What a step takes of a batch: image, label, and `known_features`."""
        image, label = self.parse_batch_train(batch)
        inputs = {"image": image, "label": label, **self.known_features(batch)}
        return self.joining.joined(batch, inputs) if self.method.asks_for_images() else inputs

    @cached_property
    def joining(self) -> Joining:
        """What adds the images that a method asks for to its batches."""
        return Joining(self)

    def known_features(self, batch: dict) -> dict[str, torch.Tensor]:
        """What `features` takes beside the images, as far as the batch has it.

        Of the v views beyond the first each is other_views, other_frozen_image … (v,B,…).
        """
        known = {name: batch[name] for name in _KNOWN if name in batch}
        if self.layer is None and self.method.compares_with_frozen_image:
            known["frozen_image"] = batch["img"]
        if isinstance(batch["img"], list):
            of_each = {name: v for name, v in known.items() if isinstance(v, list)}
            others = {"other_views": batch["img"]}
            others |= {f"other_{name}": value for name, value in of_each.items()}
            known |= {name: views[0] for name, views in of_each.items()}
            known |= {name: torch.stack(views[1:]) for name, views in others.items()}
        known = {
            name: value if name in ON_HOST else self._to_device(value)
            for name, value in known.items()
        }
        return {**known, **self._drawn(batch)}

    def _drawn(self, batch: dict) -> dict[str, torch.Tensor]:
        """The method's `drawn`, a function of seed, epoch and images as the views are."""
        if not self.method.draws():
            return {}
        return self.method.drawn(self.generator_of(batch), (self.epoch + 1) / self.max_epoch)

    def generator_of(self, batch: dict) -> torch.Generator:
        """What a step on this batch draws from: a function of seed, epoch and images."""
        place = f"{resolve_seed(self.cfg.SEED)} {self.epoch} {batch['index'].tolist()}"
        if "dataset" in batch:
            place += f" {int(batch['dataset'])}"
        return torch.Generator(self.device).manual_seed(crc32(place.encode()))

    def parse_batch_train(self, batch: dict) -> tuple[torch.Tensor, torch.Tensor]:
        """The image, of several views the first, and its label, on the device."""
        image = batch["img"][0] if isinstance(batch["img"], list) else batch["img"]
        return self._to_device(image), self._to_device(batch["label"])
