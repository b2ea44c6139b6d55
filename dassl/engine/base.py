"""The base of all trainers: models, steps, checkpoints, the loop over epochs."""

from __future__ import annotations

import os
import threading
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from dassl.compat.engine import prograd_backward_and_update
from dassl.optim import load_optimizer, load_scheduler
from dassl.utils import (
    UserError,
    check_checkpoint,
    find_checkpoint,
    fitting,
    get_rng_state,
    holding_back,
    is_disk_error,
    load_checkpoint,
    newest_checkpoint,
    save_checkpoint,
    set_rng_state,
    tolist_if_not,
)

Names = str | list[str] | None  # of registered models; None: all of them
_ADVICE = "try a lower OPTIM.LR or a wider precision"
DIVERGED = f"the loss became infinite or NaN: {_ADVICE}"
DIVERGED_PARAMETERS = f"the trained parameters became infinite or NaN: {_ADVICE}"


@contextmanager
def naming(path: str | os.PathLike) -> Iterator[None]:
    """Have an error of the disk name what was written."""
    try:
        yield
    except OSError as error:
        error.filename = error.filename or str(path)
        raise


def _quiet_about_disks() -> None:
    """Leave a full disk that TensorBoard's thread meets to `add_scalar`, which raises it too."""
    usual = threading.excepthook
    if getattr(usual, "quiet_about_disks", False):
        return

    def hook(raised: threading.ExceptHookArgs) -> None:
        if not (isinstance(raised.exc_value, OSError) and is_disk_error(raised.exc_value)):
            usual(raised)

    hook.quiet_about_disks = True  # type: ignore[attr-defined]
    threading.excepthook = hook


def SummaryWriter(*args: Any, **kwargs: Any) -> Any:
    """TensorBoard's writer, imported when one is made: it takes a second."""
    from torch.utils.tensorboard import SummaryWriter

    return SummaryWriter(*args, **kwargs)


class TrainerBase:
    """Registered models with their optimizers and schedules, and the loop over epochs."""

    # Config keys in which runs that are trained side by side may differ; none: it trains one.
    may_differ: tuple[str, ...] = ()
    # Config keys that name files on whose content the numbers depend.
    files_by_content: tuple[str, ...] = ("MODEL.INIT_WEIGHTS",)
    # Whether there is anything to train, and so a model to test.
    trains = True

    def __init__(self) -> None:
        self._models: OrderedDict[str, Any] = OrderedDict()
        self._optims: OrderedDict[str, torch.optim.Optimizer | None] = OrderedDict()
        self._scheds: OrderedDict[str, Any] = OrderedDict()
        self._writer: Any = None
        self.loaded_epoch: int | None = None  # the epochs behind weights from a checkpoint

    @classmethod
    def config_nodes(cls) -> tuple[str, ...] | None:
        """Return the nodes below TRAINER that it reads; None if it doesn't say."""
        return None

    # Models

    def register_model(
        self,
        name: str = "model",
        model: nn.Module | None = None,
        optim: torch.optim.Optimizer | None = None,
        sched: Any = None,
    ) -> None:
        """Have a model trained, switched between modes and saved under `name`."""
        if "_models" not in self.__dict__:
            raise AttributeError("call super().__init__() before register_model()")
        if name in self._models:
            raise ValueError(f"a model called {name!r} is registered already")
        self._models[name] = model
        self._optims[name] = optim
        self._scheds[name] = sched

    def get_model_names(self, names: Names = None) -> list[str]:
        """Return `names` as a list, by default all of them. Raises KeyError for unknown ones."""
        if names is None:
            return list(self._models)
        wanted: list[str] = tolist_if_not(names)
        for name in wanted:
            if name not in self._models:
                raise KeyError(f"no model called {name!r}; there are {list(self._models)}")
        return wanted

    def set_model_mode(self, mode: str = "train", names: Names = None) -> None:
        """Switch models to "train" or to "eval" (or "test")."""
        if mode not in ("train", "eval", "test"):
            raise KeyError(f"mode must be 'train' or 'eval', not {mode!r}")
        for name in self.get_model_names(names):
            self._models[name].train(mode == "train")

    # Steps

    def model_zero_grad(self, names: Names = None) -> None:
        """Clear the gradients."""
        for name in self.get_model_names(names):
            if (optim := self._optims[name]) is not None:
                optim.zero_grad()

    def model_backward(self, loss: torch.Tensor) -> None:
        """Compute the gradients."""
        self.detect_anomaly(loss)
        loss.backward()

    def model_update(self, names: Names = None) -> None:
        """Let the optimizers make their step."""
        for name in self.get_model_names(names):
            if (optim := self._optims[name]) is not None:
                optim.step()

    def model_backward_and_update(self, loss: torch.Tensor, names: Names = None) -> None:
        """Make one whole step."""
        self.model_zero_grad(names)
        self.model_backward(loss)
        self.model_update(names)

    prograd_backward_and_update = prograd_backward_and_update

    def detect_anomaly(self, loss: torch.Tensor) -> None:
        """Raise UserError if the loss is infinite or NaN.

        On a GPU, where looking at it means waiting for it, `run_epoch` does so when it prints.
        """
        if loss.device.type == "cpu" and not torch.isfinite(loss).all():
            raise UserError(DIVERGED)

    def check_parameters(self) -> None:
        """Raise UserError if trained parameters became infinite or NaN.

        The losses don't show what the last step of all did. Once an epoch, so with one wait for a
        GPU in it.
        """
        values = [
            parameter.detach()
            for name in self.get_model_names()
            for parameter in self._models[name].parameters()
            if parameter.requires_grad
        ]
        if values and not torch.stack([value.isfinite().all() for value in values]).all():
            raise UserError(DIVERGED_PARAMETERS)

    def update_lr(self, names: Names = None) -> None:
        """Take the schedules to the next epoch; a trainer does so after its last batch."""
        for name in self.get_model_names(names):
            if self._scheds[name] is not None:
                self._scheds[name].step()

    def get_current_lr(self, names: Names = None) -> float:
        """Return the learning rate of the first parameter group that is trained."""
        optims = (self._optims[name] for name in self.get_model_names(names))
        return next(optim.param_groups[0]["lr"] for optim in optims if optim is not None)

    # Checkpoints

    def model_state(self, name: str) -> dict[str, torch.Tensor]:
        """Return what a checkpoint keeps of a model; all of it unless a trainer knows better."""
        return self._models[name].state_dict()

    def load_model_state(
        self, name: str, state_dict: dict[str, torch.Tensor], checkpoint: dict[str, Any]
    ) -> None:
        """Put `model_state` back. Raises UserError where names or shapes differ.

        Args:
            name: of the model.
            state_dict: what `model_state` returned.
            checkpoint: the whole checkpoint, with what `checkpoint_extra` added.
        """
        try:
            self._models[name].load_state_dict(state_dict)
        except RuntimeError as error:
            details = " ".join(str(error).split())
            raise UserError(f"the checkpoint does not fit the model {name}: {details}") from None

    def checkpoint_extra(self) -> dict[str, Any]:
        """Return tensors and plain values to put into every checkpoint."""
        scaler = getattr(self, "scaler", None)  # of mixed precision
        return {} if scaler is None else {"scaler": scaler.state_dict()}

    def load_checkpoint_extra(self, extra: dict[str, Any]) -> None:
        """Take back what `checkpoint_extra` returned; called when training is resumed."""
        scaler = getattr(self, "scaler", None)
        if scaler is not None and extra.get("scaler"):
            scaler.load_state_dict(extra["scaler"])

    def _checkpoint(self, name: str, epochs_done: int, val_result: float | None) -> dict[str, Any]:
        optim, sched = self._optims[name], self._scheds[name]
        return {
            **self.checkpoint_extra(),
            "state_dict": self.model_state(name),
            "epoch": epochs_done,
            "optimizer": None if optim is None else optim.state_dict(),
            "scheduler": None if sched is None else sched.state_dict(),
            "val_result": None if val_result is None else float(val_result),
            "rng": get_rng_state(),
        }

    def _restore(self, checkpoints: dict[str, dict[str, Any]], source: str | os.PathLike) -> int:
        """Make the trainer what it was; return the number of epochs done.

        Raises UserError, naming `source`, for a checkpoint that lacks something or doesn't fit.
        """
        if set(checkpoints) != set(self._models):
            raise UserError(
                f"the checkpoint holds the models {', '.join(checkpoints)}, but this trainer has "
                f"{', '.join(self._models)}"
            )
        for name, checkpoint in checkpoints.items():
            check_checkpoint(checkpoint, f"{source}, {name},", required=("state_dict", "epoch"))
            with fitting(f"{source}, {name},"):
                self.load_model_state(name, checkpoint["state_dict"], checkpoint)
                optim = self._optims[name]
                if optim is not None and checkpoint.get("optimizer"):
                    load_optimizer(optim, checkpoint["optimizer"])
                if self._scheds[name] is not None and checkpoint.get("scheduler"):
                    load_scheduler(self._scheds[name], checkpoint["scheduler"])
        with fitting(source):
            self.load_checkpoint_extra(checkpoint)
            if "rng" in checkpoint:
                set_rng_state(checkpoint["rng"])
        return checkpoint["epoch"]

    def save_model(
        self,
        epoch: int,
        directory: str | os.PathLike,
        is_best: bool = False,
        val_result: float | None = None,
        model_name: str = "",
    ) -> None:
        """Write `<directory>/<model>/model.pth.tar-<epoch + 1>` for each model.

        Args:
            epoch: from 0.
            directory: usually the run's folder.
            is_best: also copy the file to `model-best.pth.tar`.
            val_result: the result on the validation images, in percent.
            model_name: another file name.
        """
        for name in self.get_model_names():
            save_checkpoint(
                self._checkpoint(name, epoch + 1, val_result),
                Path(directory) / name,
                is_best=is_best,
                model_name=model_name,
            )

    def load_model(self, directory: str | os.PathLike | None, epoch: int | None = None) -> None:
        """Load the models of the run in `directory`.

        Args:
            directory: the run's folder; nothing happens if it is empty.
            epoch: epochs done, from 1; by default the best model, else the last one.

        Raises:
            UserError: if there is none, or it does not fit.
        """
        if not directory:
            print("No model directory was given: the models stay as they are")
            return
        for name in self.get_model_names():
            path = find_checkpoint(directory, name, epoch)
            checkpoint = load_checkpoint(path)
            state_dict = checkpoint.get("state_dict", checkpoint)
            with fitting(path):
                self.load_model_state(name, state_dict, checkpoint)
            self.loaded_epoch = checkpoint.get("epoch")
            result = checkpoint.get("val_result")
            result = "" if result is None else f", val_result={float(result):.1f}"
            print(f"Loaded {path} into {name} (epoch={self.loaded_epoch}{result})")

    def resume_model_if_exist(self, directory: str | os.PathLike) -> int:
        """Go on from the newest checkpoints in `directory`; return the number of epochs done."""
        folders = {name: Path(directory) / name for name in self.get_model_names()}
        if not all(folder.is_dir() for folder in folders.values()):
            print("No checkpoint found, train from scratch")
            return 0
        checkpoints = {n: load_checkpoint(newest_checkpoint(f)) for n, f in folders.items()}
        done = self._restore(checkpoints, directory)
        print(f"Found checkpoints in {directory}: resuming at epoch {done + 1}")
        return done

    # TensorBoard

    def init_writer(self, log_dir: str | os.PathLike) -> None:
        """Start writing TensorBoard events."""
        if self._writer is None:
            with naming(log_dir):
                self._writer = SummaryWriter(log_dir=str(log_dir))
            self._log_dir = log_dir
            _quiet_about_disks()

    def close_writer(self) -> None:
        """Stop writing them."""
        if self._writer is not None:
            writer, self._writer = self._writer, None
            with naming(self._log_dir):
                writer.close()

    def write_scalar(self, tag: str, scalar_value: float, global_step: int | None = None) -> None:
        """Write one value, if a writer was started."""
        if self._writer is not None:
            with naming(self._log_dir):
                self._writer.add_scalar(tag, scalar_value, global_step)

    # The loop, and what subclasses put into it

    def train(self, start_epoch: int, max_epoch: int) -> None:
        """Train from `start_epoch` (from 0) to `max_epoch`."""
        self.start_epoch = start_epoch
        self.max_epoch = max_epoch
        self.before_train()
        self.epoch = max(self.start_epoch - 1, 0)  # where there is nothing left to train
        for epoch in range(self.start_epoch, self.max_epoch):
            self.epoch = epoch
            self.begin_epoch()
            self.before_epoch()
            with holding_back():  # if `run_epoch` can stop, and save, between two steps
                self.run_epoch()
                self.check_parameters()
                self.after_epoch()
                self.end_epoch()
        self.after_train()

    def begin_epoch(self) -> None:
        """The engine's own part before an epoch."""

    def end_epoch(self) -> None:
        """The engine's own part after an epoch."""

    def before_train(self) -> None:
        """Called once, before the first epoch."""

    def after_train(self) -> None:
        """Called once, after the last epoch."""

    def before_epoch(self) -> None:
        """Called before each epoch."""

    def after_epoch(self) -> None:
        """Called after each epoch."""

    def run_epoch(self) -> None:
        """Go once through the training data."""
        raise NotImplementedError

    def test(self, split: str | None = None) -> float:
        """Evaluate."""
        raise NotImplementedError

    def parse_batch_train(self, batch: dict[str, Any]) -> Any:
        """Return the parts of a training batch on the device."""
        raise NotImplementedError

    def parse_batch_test(self, batch: dict[str, Any]) -> Any:
        """Return the parts of a test batch on the device."""
        raise NotImplementedError

    def forward_backward(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Make one step and return its losses by name."""
        raise NotImplementedError

    def model_inference(self, input: torch.Tensor) -> torch.Tensor:
        """Return the scores (B, C) of images (B, 3, I, I), I pixels a side."""
        raise NotImplementedError
