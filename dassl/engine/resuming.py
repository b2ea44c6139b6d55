"""Going on from where a run was interrupted: after an epoch, or midway in one."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from dassl.config.identity import Identity, differences, is_identity, told
from dassl.utils import MetricMeter, UserError, check_kind, fitting, get_rng_state, set_rng_state

from .base import TrainerBase

if TYPE_CHECKING:
    from dassl.config import CfgNode

    from .records import Records


@dataclass
class Midway:
    """A place in an epoch; by default its beginning.

    batches: done. losses: of those. rng: the generators' states after them, see `get_rng_state`.
    lr: the epoch's rates, which the last batch changes. seconds: spent on the batches.
    """

    batches: int = 0
    losses: MetricMeter = field(default_factory=MetricMeter)
    rng: dict[str, Any] | None = None
    lr: list[float] = field(default_factory=list)
    seconds: float = 0.0

    @classmethod
    def of(cls, resume: dict[str, Any]) -> Midway:
        """The place that a resume file's content names."""
        state = resume.get("midway")
        if state is None:
            return cls()
        for name, kind in (("batches", int), ("rng", (dict, type(None))), ("seconds", float)):
            check_kind(state[name], kind, f"its entry '{name}'")
        for rate in check_kind(state["lr"], list, "its entry 'lr'"):
            check_kind(rate, float, "a rate")
        losses = MetricMeter()
        losses.load_state_dict(state["losses"])
        return cls(**{**state, "losses": losses})

    def state(self) -> dict[str, Any]:
        """The place as plain values and tensors, for a resume file."""
        return {**vars(self), "losses": self.losses.state_dict()}

    def restore_rng(self) -> None:
        """Set the generators, once: what passed the batches by may have drawn from them."""
        if self.rng is not None:
            set_rng_state(self.rng)
            self.rng = None


class Resuming(TrainerBase):
    """The part of `SimpleTrainer` that writes and reads what an interrupted run goes on from."""

    cfg: CfgNode
    _records: Records
    _midway: Midway
    _started: float  # when this process took up the run
    _earlier_seconds: float  # spent on it before
    _epoch_started: float
    _epoch_lr: list[float]

    @property
    def identity(self) -> Identity:
        """What the run's numbers depend on."""
        raise NotImplementedError

    def resume_model_if_exist(self, directory: str | os.PathLike) -> int:
        """Return the number of epochs that are done, after restoring their outcome.

        A run interrupted in the run's own folder is taken up if its identity is the same. What
        cfg.RESUME names must be there; settings may differ then, which is said, but neither the
        data nor the backbone.

        Raises:
            UserError: if it is another run's, or cfg.RESUME holds nothing to go on from.
        """
        state = None if self.cfg.OVERWRITE else self._records.unfinished()
        if state:
            self._check_resumable(state.get("identity"), directory)
            done = self._restore(state["models"], directory)
            self.best_result = state["best_result"]
            self._earlier_seconds = state["seconds"]
            with fitting(f"{directory}, its place in the epoch,"):
                self._midway = Midway.of(state)
            place = f", batch {self.batches_done + 1}" if self.batches_done else ""
            print(f"Found an unfinished run in {directory}: resuming at epoch {done + 1}{place}")
            return done
        if not self.cfg.RESUME:
            print("No unfinished run found, train from scratch")
            return 0
        done = super().resume_model_if_exist(directory)
        if not done:
            raise UserError(f"{directory} holds no run to resume")
        return done

    def _check_resumable(self, recorded: Any, directory: str | os.PathLike) -> None:
        if not is_identity(recorded):
            raise UserError(
                f"the unfinished run in {directory} doesn't say what it depends on, so it isn't "
                "taken up: start anew with --overwrite"
            )
        found = differences(recorded, self.identity)
        settings = [phrase for phrase in found if " -> " in phrase and "template" not in phrase]
        named = "TRAINER.NAME" in told(found, len(found))
        if found and (not self.cfg.RESUME or len(settings) < len(found) or named):
            raise UserError(
                f"the unfinished run in {directory} is another one ({told(found)}): choose another "
                "--output-dir, or say --overwrite to start anew"
            )
        if found:
            print(f"Going on from {directory} with other settings: {told(found, len(found))}")

    def _resume_state(self, epochs_done: int) -> dict[str, Any]:
        names = self.get_model_names()
        return {
            "models": {name: self._checkpoint(name, epochs_done, None) for name in names},
            "identity": self.identity,
            "best_result": self.best_result,
            "seconds": self._seconds(),
        }

    @property
    def batches_done(self) -> int:
        """How many batches of the epoch to come, or under way, an interrupted run has behind it."""
        return self._midway.batches

    def take_midway(self) -> Midway:
        """Return where in the epoch to go on; the next epoch begins at its beginning."""
        midway, self._midway = self._midway, Midway()
        self._epoch_started -= midway.seconds
        self._epoch_lr = midway.lr or self._epoch_lr
        return midway

    def write_midway(self, batches: int, losses: MetricMeter) -> None:
        """Write what the run needs to go on after so many batches of this epoch.

        The views are functions of (seed, epoch, index): the next time these batches are passed by.
        """
        seconds = time.perf_counter() - self._epoch_started
        midway = Midway(batches, losses, get_rng_state(), self._epoch_lr, seconds)
        self._records.write_resume({**self._resume_state(self.epoch), "midway": midway.state()})

    def _seconds(self) -> float:
        """Seconds spent on the run, before an interruption too."""
        return self._earlier_seconds + time.perf_counter() - self._started
