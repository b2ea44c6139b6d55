"""The trainer that runs one method: one step for all precisions, one save, one load.

Shape letters: method.py's.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import Any
from weakref import WeakValueDictionary

import torch

from clip.clip import find_model, load_state_dict
from clip.model import build_model, convert_weights
from clip.prompting import Encoders
from dassl.config import CfgNode
from dassl.data.data_manager import ImageLoader, template_of
from dassl.engine import TrainerX
from dassl.optim import build_lr_scheduler, build_optimizer
from dassl.utils import UserError, count_num_param, file_sha256

from . import original_checkpoints
from .feature_cache import Encoder, NextEpoch
from .method import Classes, Method
from .step import Batch, BatchLosses, TrainingStep, scaled_update

PRECISIONS = ("fp32", "fp16", "bf16", "amp")
# Views encoded in one pass of the image tower, on a CPU and on a GPU.
VIEWS_AT_ONCE = (32, 512)

_ENCODERS: WeakValueDictionary[tuple, Encoders] = WeakValueDictionary()


# What runs that are trained at once have one step and one loop in place of.
_STEP = ("train", "run_epoch", "_run_batches", "forward_backward", "model_zero_grad")


def extend_cfg(cfg: CfgNode) -> None:
    # False: the plain encoders, for benchmarks and doubts; the numbers are the same.
    cfg.MODEL.FAST = True
    # On a GPU a step's kernels are recorded once and replayed. Off until measured on one.
    cfg.TRAIN.CUDA_GRAPH = False


def resolve_precision(wanted: str, device: torch.device, key: str) -> str:
    """The precision to run in: half precision of the towers needs a GPU, except bf16.

    Raises:
        UserError: an unknown one.
    """
    if wanted not in PRECISIONS:
        raise UserError(f"{key} is {wanted!r}; one of: {', '.join(PRECISIONS)}")
    if wanted in ("fp16", "amp") and device.type == "cpu":
        print(f"{key}: {wanted} needs a GPU; running in fp32 on this CPU")
        return "fp32"
    return wanted


class PromptTrainer(TrainerX):
    """Trains one `Method`: one step for all precisions, one save, one load.

    A subclass names its method, its config node under TRAINER and its model's folder name, and
    which file of configs/trainers/<Trainer> protocols take, where it is another.
    """

    usual_config = "vit_b16_ep10"
    method_class: type[Method]
    config_node: str
    model_name = "prompt_learner"
    may_differ: tuple[str, ...] = ("SEED",)
    files_by_content = ("MODEL.BACKBONE.NAME", "MODEL.INIT_WEIGHTS")
    side_by_side = 1  # the number of runs that are trained together

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if cls.own_step():
            cls.may_differ = ()

    @classmethod
    def own_step(cls) -> list[str]:
        """Which of the functions it defines itself that runs trained at once don't call."""
        return [name for name in _STEP if getattr(cls, name) is not getattr(PromptTrainer, name)]

    def check_cfg(self, cfg: CfgNode) -> None:
        self.method_cfg(cfg)  # names the missing node before any work

    @classmethod
    def config_nodes(cls) -> tuple[str, ...]:
        """As the engine's."""
        return (cls.config_node,)

    @classmethod
    def file_digest(cls, key: str, name: str) -> str:
        """As the engine's; a backbone may also be named."""
        return file_sha256(find_model(name) if key == "MODEL.BACKBONE.NAME" else name)

    @classmethod
    def template_of(cls, cfg: CfgNode, dataset: Any) -> str:
        """As the engine's; a method may read another of the data set's templates."""
        return template_of(cfg, dataset, cls.method_class.template_name)

    @classmethod
    def precision_of(cls, cfg: CfgNode, device: torch.device) -> str:
        """What the towers run in, by the method's PREC and the device."""
        key = f"TRAINER.{cls.config_node}.PREC"
        return resolve_precision(cls.method_cfg(cfg).PREC, device, key)

    @classmethod
    def method_cfg(cls, cfg: CfgNode) -> CfgNode:
        return cfg.TRAINER[cls.config_node]

    @classmethod
    def resolve_cfg(cls, cfg: CfgNode) -> None:
        """Let config.yaml record what is used; called once, when all options are merged."""
        cls.method_class.resolve_cfg(cfg)

    @classmethod
    def build_method(cls, cfg: CfgNode, encoders: Encoders, classes: Classes) -> Method:
        return cls.method_class.from_cfg(cfg, encoders, classes)

    def build_model(self) -> None:
        cfg = self.cfg
        self.precision = self.precision_of(cfg, self.device)
        print(f"Loading CLIP (backbone: {cfg.MODEL.BACKBONE.NAME})")
        encoders, self.backbone_sha256 = load_encoders(cfg, self.precision, self.device)
        dm = self.dm
        classes = Classes(
            list(dm.classnames),
            list(dm.class_keys),
            self.template_of(cfg, dm.dataset),
            dict(dm.label_space),
            # One that was asked for takes part.
            bool(cfg.DATASET.TEMPLATE) or dm.dataset.template_joins_ensembles,
        )
        self.method = self.build_method(cfg, encoders, classes).to(self.device).freeze()
        if cfg.MODEL.INIT_WEIGHTS:
            self.initialise_from(cfg.MODEL.INIT_WEIGHTS)

        trained = self.method.trained()
        print(f"Parameters to train: {', '.join(trained) or 'none'}")
        print(f"Number of them: {sum(p.numel() for p in trained.values()):,}")
        print(f"Number of all: {count_num_param(self.method):,}")
        optim = sched = None
        if trained:
            groups = self.method.param_groups(cfg.OPTIM.LR)
            optim = build_optimizer(self.method, cfg.OPTIM, groups)
            sched = build_lr_scheduler(optim, cfg.OPTIM)
        self.register_model(self.model_name, self.method, optim, sched)
        replayed = self.device.type == "cuda" and cfg.MODEL.FAST and cfg.TRAIN.CUDA_GRAPH
        self.training_step = TrainingStep(
            BatchLosses(self.method, self.autocast),
            lambda: self.model_zero_grad(),
            lambda total: self.scaler.scale(total),
            self.finish_step,
            trained.values() if replayed else None,
        )
        self.encoder: Encoder | None = None
        self.next_epoch: NextEpoch | None = None
        untouched = self.method.image_tower_untouched
        if cfg.MODEL.FAST and (untouched or self.method.compares_with_frozen_image):
            tower = {
                "backbone": self.backbone_sha256,
                "precision": self.precision,
                "code": type(self).encode_views.__qualname__,
            }
            self.encoder = Encoder(cfg, self.encode_views, self.device, tower)
        # fp16 gradients underflow without a scale; the scaled loss of CLIP's τ = 100 overflows at
        # the default one.
        self.scaler = torch.amp.GradScaler(
            self.device.type, init_scale=2.0**10, enabled=self.precision in ("fp16", "amp")
        )

    def autocast(self) -> torch.autocast:
        """What the features are computed under."""
        return autocast(self.device, self.precision)

    # Training.

    def train(self) -> None:  # type: ignore[override]  # as Dassl has it
        if not self.method.trained():
            print(f"{type(self).__name__} has nothing to train")
            self.final_test()
            return
        super().train()

    def training_batches(self) -> Iterable[dict]:
        """The epoch's batches; where no trained input enters the image tower, already encoded.

        Where methods compare with the unprompted tower's features, those come with the images.
        """
        batches = super().training_batches()
        if self.encoder is None or not isinstance(batches, ImageLoader):
            return batches
        per_batch = self.cfg.DATALOADER.TRAIN_X.BATCH_SIZE
        at_once = max(1, VIEWS_AT_ONCE[self.device.type == "cuda"] // per_batch)
        if not self.method.image_tower_untouched:
            return self.encoder.batches(batches, at_once, "frozen_image")
        if not self.encodes_beside_training:
            return self.encoder.batches(batches, at_once)
        if self.next_epoch is None or self.next_epoch.loader is not batches:
            self.next_epoch = NextEpoch(self.encoder, batches, at_once, self.max_epoch)
        return self.next_epoch.batches(self.epoch)

    @property
    def encodes_beside_training(self) -> bool:
        """Whether the next epoch's views are encoded while this one trains.

        On a GPU a step is many small kernels, with room beside them; a CPU has none.
        """
        return self.device.type == "cuda" and self.cfg.DATALOADER.NUM_WORKERS > 0

    def testing_batches(self, loader: Iterable[dict]) -> Iterable[dict]:
        """As `training_batches`, for evaluation."""
        untouched = self.method.image_tower_untouched
        if self.encoder is None or not untouched or not isinstance(loader, ImageLoader):
            return loader
        return self.encoder.batches(loader)

    @torch.no_grad()
    def encode_views(self, image: torch.Tensor) -> torch.Tensor:
        """(B,3,I,I) → (B,D) features of views whose features no training step changes."""
        with self.autocast():
            return self.method.encoders.image(image)

    def forward_backward(self, batch: dict) -> dict:
        return self.training_step(self.step_inputs(batch))

    def step_inputs(self, batch: dict) -> Batch:
        """What a step takes of a batch: image, label, and `known_features`."""
        image, label = self.parse_batch_train(batch)
        return {"image": image, "label": label, **self.known_features(batch)}

    def finish_step(self) -> None:
        """Once the gradients are there: the optimizers' step, and at an epoch's end the rates'."""
        self.model_update()
        if self.batch_idx + 1 == self.num_batches:
            self.update_lr()

    def undeclared(self) -> list[str]:
        """The registered models whose optimizers train what the method doesn't declare."""
        declared = {id(p) for p in self.method.trained().values()}
        return [
            name
            for name, optim in self._optims.items()
            if optim is not None
            and any(id(p) not in declared for group in optim.param_groups for p in group["params"])
        ]

    def model_update(self, names: str | list[str] | None = None) -> None:
        """As Dassl's, but for a step whose scaled gradients overflowed: that one is left out."""
        optims = [self._optims[name] for name in self.get_model_names(names)]
        scaled_update([optim for optim in optims if optim is not None], self.scaler)

    def known_features(self, batch: dict) -> dict[str, torch.Tensor]:
        """What `features` takes beside the images, as far as the batch has it."""
        return {name: batch[name] for name in ("frozen_image",) if name in batch}

    def parse_batch_train(self, batch: dict) -> tuple[torch.Tensor, torch.Tensor]:
        return self._to_device(batch["img"]), self._to_device(batch["label"])

    # Evaluation.

    def model_inference(self, input: torch.Tensor) -> torch.Tensor:
        with self.autocast():
            features = self.method.features(input)
        return self.method.logits(features)

    # Checkpoints.

    def model_state(self, name: str) -> dict[str, torch.Tensor]:
        """What the method trains; of another model all, copied: it may be slices of several."""
        if self._is_method(name):
            return self.method.trained_state()
        return {key: value.clone() for key, value in super().model_state(name).items()}

    def _is_method(self, name: str) -> bool:
        return self._models[name] is self.method

    def checkpoint_extra(self) -> dict:
        return {
            **super().checkpoint_extra(),
            "backbone_sha256": self.backbone_sha256,
            "scaler": self.scaler.state_dict(),
        }

    def load_checkpoint_extra(self, extra: dict) -> None:
        self.scaler.load_state_dict(extra["scaler"])

    def result_extra(self) -> dict:
        return {"backbone_sha256": self.backbone_sha256, "side_by_side": self.side_by_side}

    def load_model(self, directory: str | os.PathLike | None, epoch: int | None = None) -> None:
        """As Dassl's; a method that trains nothing has nothing to load."""
        if self.method.trained():
            super().load_model(directory, epoch)

    def load_model_state(self, name: str, state_dict: dict, checkpoint: dict) -> None:
        if not self._is_method(name):
            return super().load_model_state(name, state_dict, checkpoint)
        self._load(state_dict, checkpoint, partial=False)

    def initialise_from(self, path: str) -> None:
        """Start from the parameters of a checkpoint file, ours or one of the original code."""
        checkpoint = original_checkpoints.read(path)
        self._load(checkpoint["state_dict"], checkpoint, partial=True, source=path)

    def _load(
        self, state: dict, checkpoint: dict, partial: bool, source: str = "the checkpoint"
    ) -> None:
        load_into(
            self.method,
            {**checkpoint, "state_dict": state},
            source,
            self.backbone_sha256,
            partial,
            others_classes=self.cfg.DATASET.SUBSAMPLE_CLASSES == "new" and not partial,
        )


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """Mixed precision where `precision` is "amp", else none."""
    return torch.autocast(device.type, dtype=torch.float16, enabled=precision == "amp")


def load_encoders(cfg: CfgNode, precision: str, device: torch.device) -> tuple[Encoders, str]:
    """The frozen towers, shared by all that are alive at a time, and SHA-256 of their file.

    Raises:
        UserError: no such backbone, or INPUT.SIZE isn't its images'.
    """
    path = find_model(cfg.MODEL.BACKBONE.NAME)
    sha256 = file_sha256(path)
    key = (sha256, precision, str(device), cfg.MODEL.FAST)
    encoders = _ENCODERS.get(key)
    if encoders is None:
        clip_model = build_model(load_state_dict(path))
        if precision != "fp16":
            clip_model.float()
        if precision == "bf16":
            convert_weights(clip_model, torch.bfloat16)
        encoders = _ENCODERS[key] = Encoders(clip_model.to(device), cfg.MODEL.FAST)
    _check_resolution(cfg, encoders.image.visual.input_resolution)
    return encoders, sha256


def load_into(
    method: Method,
    checkpoint: dict,
    source: str,
    backbone_sha256: str,
    partial: bool = False,
    others_classes: bool = False,
) -> None:
    """Put a checkpoint's values into a method, strictly; say what was taken and what left.

    Args:
        method: what they are put into.
        checkpoint: with a state_dict; ours, or one of the original code.
        source: its name, for messages.
        backbone_sha256: of the method's encoders.
        partial: a start for training: what is missing stays at its initial values.
        others_classes: a checkpoint that doesn't tell its classes has others than the method.

    Raises:
        UserError: it is of another method, backbone or shape.
    """
    state, keys = checkpoint["state_dict"], checkpoint.get("class_keys")
    backbone = checkpoint.get("backbone_sha256")
    if backbone not in (None, backbone_sha256):
        raise UserError(
            f"{source} was trained on another backbone (SHA-256 {backbone[:12]}…, this run has "
            f"{backbone_sha256[:12]}…): set MODEL.BACKBONE.NAME as in training"
        )
    left: list[str] = []
    if original_checkpoints.is_original(state):
        kind = original_checkpoints.kind(state)
        print(f"{source}: a checkpoint of the original code ({kind})")
        keys = original_checkpoints.class_keys(state, method)
        state, left = original_checkpoints.translate(state, method.names())
    if keys is None and others_classes:
        keys = []
    taken = method.load_trained(state, keys, partial)
    names = method.names()
    left += [name for name in state if names.get(name) not in taken]
    print(f"Taken from {source}: {', '.join(taken) or 'nothing'}")
    if left:
        print(f"Left there: {', '.join(left)}")
    if partial and (fresh := [name for name in method.trained() if name not in taken]):
        print(f"Not in it, so at their initial values: {', '.join(fresh)}")


def _check_resolution(cfg: CfgNode, resolution: int) -> None:
    size = cfg.INPUT.SIZE
    if tuple(size) != (resolution, resolution):
        raise UserError(
            f"INPUT.SIZE is {tuple(size)}, but backbone {cfg.MODEL.BACKBONE.NAME} takes "
            f"{resolution} x {resolution} images: set INPUT.SIZE to ({resolution}, {resolution})"
        )
