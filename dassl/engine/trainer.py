"""Trainers: the loop over batches, evaluation, checkpoints, records.

A subclass says how to build its model and what one step does:

    build_model()            make the model, its optimizer and schedule; `register_model` them
    forward_backward(batch)  one step; returns {"loss": total, "loss_<name>": part, …}
    model_inference(input)   (B, C) scores

Values of a step's dict may be tensors on the GPU: they are added up there, and the loop waits for
the GPU only where it prints.
"""

from __future__ import annotations

import datetime
import math
import os
import time
from collections.abc import Iterable, Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from dassl.config import CfgNode, check_values
from dassl.config.identity import Identity, cache_folder, data_of, lists_of, settings_of
from dassl.data import DataManager
from dassl.data.data_manager import template_of
from dassl.evaluation import build_evaluator
from dassl.utils import (
    AverageMeter,
    MetricMeter,
    UserError,
    check_choice,
    file_sha256,
)

from .base import DIVERGED, SummaryWriter, TrainerBase
from .loop import BatchLoop
from .progress import Progress
from .records import Records
from .resuming import Midway
from .testing import Testing
from .trackers import with_trackers

__all__ = [
    "AverageMeter",
    "MetricMeter",
    "SimpleTrainer",
    "SummaryWriter",
    "TrainerBase",
    "TrainerX",
    "TrainerXU",
]


class SimpleTrainer(Testing, BatchLoop, TrainerBase):
    """A trainer made from a config: data, evaluation, checkpoints and records.

    Attributes that subclasses use: cfg, device, dm, num_classes, lab2cname, train_loader_x,
    val_loader, test_loader, evaluator, output_dir, epoch and max_epoch (from 0), batch_idx,
    num_batches, best_result.
    """

    label = ""  # which it is of several that are trained in step
    num_batches: int
    batch_idx: int

    def __init__(self, cfg: CfgNode) -> None:
        super().__init__()
        check_choice("TEST.FINAL_MODEL", cfg.TEST.FINAL_MODEL, ("last_step", "best_val"))
        check_values(cfg)
        self.check_cfg(cfg)
        self.cfg = cfg
        use_cuda = torch.cuda.is_available() and cfg.USE_CUDA
        if cfg.USE_CUDA and not use_cuda and cfg.VERBOSE:
            print("USE_CUDA: there is no GPU that PyTorch can use; running on the CPU")
        self.device = torch.device("cuda" if use_cuda else "cpu")
        self.start_epoch = self.epoch = 0
        self.max_epoch = cfg.OPTIM.MAX_EPOCH
        self.output_dir = cfg.OUTPUT_DIR
        self.best_result = -math.inf
        self._model_dir = ""  # where the weights come from, if not from this run
        self._tested: Path | None = None  # the checkpoint that is tested, without training
        self._in_training = False
        self._started = time.perf_counter()
        self._earlier_seconds = 0.0  # before the run was interrupted
        self._midway = Midway()
        self._records = Records(cfg)
        self.build_data_loader()
        self.build_model()
        self.evaluator = build_evaluator(cfg, lab2cname=self.lab2cname)

    def check_cfg(self, cfg: CfgNode) -> None:
        """Raise UserError if the config does not suit this trainer."""

    def build_data_loader(self) -> None:
        """Make the data manager and take over its loaders and class names."""
        self.dm = DataManager(self.cfg)
        self.train_loader_x = self.dm.train_loader_x
        self.train_loader_u = self.dm.train_loader_u
        self.val_loader = self.dm.val_loader
        self.test_loader = self.dm.test_loader
        self.num_classes = self.dm.num_classes
        self.num_source_domains = self.dm.num_source_domains
        self.lab2cname = self.dm.lab2cname

    def build_model(self) -> None:
        """Make the model, its optimizer and its schedule, and `register_model` them."""
        raise NotImplementedError

    # Identity

    @classmethod
    def identity_of(
        cls, cfg: CfgNode, dataset: Any, model: str | os.PathLike | None = None
    ) -> Identity:
        """Return what the numbers of a run with this config and data depend on.

        model: the checkpoint file that it tests, if it doesn't train.
        """
        named = {key: _lookup(cfg, key) for key in cls.files_by_content}
        identity = {
            "settings": settings_of(cfg, cls.config_nodes(), cls.files_by_content),
            "data": data_of(
                dataset,
                cls.template_of(cfg, dataset),
                lists_of(cfg, trains=cls.trains and model is None),
                cache_folder(cfg),
            ),
            "files": {key: cls.file_digest(key, name) for key, name in named.items() if name},
        }
        return identity | ({"model": file_sha256(model)} if model is not None else {})

    @classmethod
    def template_of(cls, cfg: CfgNode, dataset: Any) -> str:
        """Return the prompt template that it reads."""
        return template_of(cfg, dataset)

    @classmethod
    def file_digest(cls, key: str, name: str) -> str:
        """Return the SHA-256 of the file that `name`, the value of a `files_by_content`, means."""
        return file_sha256(name)

    @cached_property
    def identity(self) -> Identity:
        """What this run's numbers depend on."""
        return self.identity_of(self.cfg, self.dm.dataset, self._tested)

    def checkpoint_extra(self) -> dict[str, Any]:
        """As `TrainerBase.checkpoint_extra`, with what it takes to use the model."""
        return {
            **super().checkpoint_extra(),
            "trainer": self.cfg.TRAINER.NAME,
            **self._resolved(),
        }

    # Training

    def train(self) -> None:  # type: ignore[override]  # as Dassl has it
        """Train, evaluate and write the records."""
        try:
            super().train(self.start_epoch, self.max_epoch)
        finally:
            self.end_loading()

    def end_loading(self) -> None:
        """Give back what loads the training images."""
        self.dm.close()

    def before_train(self) -> None:
        """Go on from an interrupted run if there is one, and open the records."""
        if self.cfg.TEST.FINAL_MODEL == "best_val" and self.val_loader is None:
            raise UserError(
                f"TEST.FINAL_MODEL best_val chooses the epoch by validation images, and "
                f"{self.cfg.DATASET.NAME} has none here: set it to last_step"
            )
        self.check_corruption()
        self._in_training = True
        directory = self.cfg.RESUME or self.cfg.OUTPUT_DIR
        self.start_epoch = self.resume_model_if_exist(directory)
        self._records.begin(self.get_model_names(), self.start_epoch, goes_on=self.batches_done > 0)
        self.init_writer(Path(self.output_dir) / "tensorboard")
        self.time_start = time.time()

    def init_writer(self, log_dir: str | os.PathLike) -> None:
        """As `TrainerBase.init_writer`; with the trackers that the config asks for."""
        if self._writer is None:
            super().init_writer(log_dir)
            self._writer = with_trackers(self._writer, self.cfg)

    def begin_epoch(self) -> None:
        """Note when the epoch begins and at which rates, and take the views to it."""
        self._epoch_started = time.perf_counter()
        self._epoch_lr = [
            float(group["lr"])
            for optim in self._optims.values()
            if optim is not None
            for group in optim.param_groups
        ]
        self.epoch_losses: dict[str, float] = {}
        self._validated: dict[str, float] = {}
        self.dm.set_epoch(self.epoch)

    def end_epoch(self) -> None:
        """Record the epoch, and what a killed run goes on from."""
        losses = self.epoch_losses
        self._records.add_epoch(
            {
                "epoch": self.epoch + 1,
                "loss": losses.get("loss"),
                "losses": {
                    name.removeprefix("loss_"): value
                    for name, value in losses.items()
                    if name.startswith("loss_")
                },
                "lr": self._epoch_lr,
                "seconds": time.perf_counter() - self._epoch_started,
                **({"val": self._validated} if self._validated else {}),
            }
        )
        self._records.write_resume(self._resume_state(self.epoch + 1))

    @property
    def validates(self) -> bool:
        """Whether each epoch's model is tested on the validation images."""
        return self.cfg.TEST.FINAL_MODEL == "best_val" and not self.cfg.TEST.NO_TEST

    def after_epoch(self) -> None:
        """Choose the best model if asked to, and save the model where it is due."""
        if self.validates:
            result = self.test(split="val")
            self._validated = dict(self.evaluator.results)
            if result > self.best_result:
                self.best_result = result
                self.save_model(
                    self.epoch, self.output_dir, val_result=result, model_name="model-best.pth.tar"
                )
        every = self.cfg.TRAIN.CHECKPOINT_FREQ
        last = self.epoch + 1 == self.max_epoch
        if last or (every > 0 and (self.epoch + 1) % every == 0):
            self.save_model(self.epoch, self.output_dir)

    def after_train(self) -> None:
        """Evaluate, write the result, and close the records."""
        print("Finish training")
        self._in_training = False
        self.loaded_epoch = self.max_epoch
        if not self.cfg.TEST.NO_TEST:
            if self.cfg.TEST.FINAL_MODEL == "best_val":
                print("Deploy the model with the best result on the validation images")
                self.load_model(self.output_dir)
            else:
                print("Deploy the last-epoch model")
            self.final_test()
        self._records.finish()
        print(f"Elapsed: {datetime.timedelta(seconds=round(time.time() - self.time_start))}")
        self.close_writer()

    def _trainers(self) -> Iterator[SimpleTrainer]:
        yield self

    def _step(self, batch: tuple) -> list[dict[str, Any]]:
        return [self.forward_backward(*batch)]

    def check_losses(self, losses: MetricMeter) -> None:
        """Raise UserError if training diverged."""
        for name, meter in losses.meters.items():
            if name.startswith("loss") and not math.isfinite(meter.avg):
                raise UserError(f"{DIVERGED} (epoch {self.epoch + 1})")

    def report(
        self,
        losses: MetricMeter,
        batch_time: AverageMeter,
        data_time: AverageMeter,
        progress: Progress,
    ) -> None:
        """Print a line about the epoch so far. Raises UserError if training diverged."""
        self.check_losses(losses)
        left = (self.max_epoch - self.epoch) * self.num_batches - self.batch_idx - 1
        eta = datetime.timedelta(seconds=int(batch_time.avg * left))
        progress.print(
            f"{self.label}{': ' if self.label else ''}"
            f"epoch [{self.epoch + 1}/{self.max_epoch}] "
            f"batch [{self.batch_idx + 1}/{self.num_batches}] "
            f"time {batch_time.val:.3f} ({batch_time.avg:.3f}) "
            f"data {data_time.val:.3f} ({data_time.avg:.3f}) "
            f"{losses} lr {self.get_current_lr():.4e} eta {eta}"
        )
        step = self.epoch * self.num_batches + self.batch_idx
        for name, meter in losses.meters.items():
            self.write_scalar(f"train/{name}", meter.avg, step)
        self.write_scalar("train/lr", self.get_current_lr(), step)


class TrainerX(SimpleTrainer):
    """Trains on labeled images."""

    def run_epoch(self) -> None:
        """Go once through the labeled images."""
        batches = self.training_batches()
        self._run_batches(((batch,) for batch in batches), self.batches_per_epoch)

    def training_batches(self) -> Iterable[dict[str, Any]]:
        """The batches of this epoch; a trainer may prepare them further."""
        return self._loader_x

    @property
    def batches_per_epoch(self) -> int:
        """How many batches an epoch has if no image is skipped."""
        return len(self._loader_x)

    @property
    def _loader_x(self) -> Any:
        if self.train_loader_x is None:
            name = self.cfg.DATASET.LABEL or self.cfg.DATASET.NAME
            raise UserError(
                f"{name} has no training images: it is a set to test on (--eval-only --model-dir)"
            )
        return self.train_loader_x

    def parse_batch_train(self, batch: dict[str, Any]) -> tuple[torch.Tensor, ...]:
        """Return images, labels and domains on the device."""
        return tuple(self._to_device(batch[key]) for key in ("img", "label", "domain"))


class TrainerXU(SimpleTrainer):
    """Trains on pairs of a labeled and an unlabeled batch: `forward_backward(batch_x, batch_u)`.

    The shorter loader starts anew until the one that TRAIN.COUNT_ITER names is through.
    """

    def run_epoch(self) -> None:
        """Go once through the images that are counted."""
        x, u = self.train_loader_x, self.train_loader_u
        if x is None or u is None:
            raise UserError(f"{self.cfg.DATASET.NAME} lacks labeled or unlabeled training images")
        lengths = {"train_x": len(x), "train_u": len(u), "smaller_one": min(len(x), len(u))}
        counted = self.cfg.TRAIN.COUNT_ITER
        check_choice("TRAIN.COUNT_ITER", counted, lengths)
        number = lengths[counted]
        pairs = zip(range(number), _endless(x), _endless(u), strict=False)
        self._run_batches(((batch_x, batch_u) for _, batch_x, batch_u in pairs), number)

    def parse_batch_train(  # type: ignore[override]  # as Dassl has it
        self, batch_x: dict[str, Any], batch_u: dict[str, Any]
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return labeled images, their labels and unlabeled images on the device."""
        return (
            self._to_device(batch_x["img"]),
            self._to_device(batch_x["label"]),
            self._to_device(batch_u["img"]),
        )


def _lookup(cfg: CfgNode, key: str) -> Any:
    """The value of a dotted key."""
    for part in key.split("."):
        cfg = cfg[part]
    return cfg


def _endless(loader: Iterable) -> Iterator:
    while True:
        empty = True
        for batch in loader:
            empty = False
            yield batch
        if empty:
            return
