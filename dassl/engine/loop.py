"""The loop over an epoch's batches: of a trainer, or of several that are trained in step."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from dassl.utils import (
    AverageMeter,
    MetricMeter,
    UserError,
    hold_back,
    stop_if_wanted,
    stop_wanted,
)

from .progress import Progress, with_last

if TYPE_CHECKING:
    from .trainer import SimpleTrainer


class BatchLoop:
    """What a trainer and several in step share; they say whose loop it is and what a step does."""

    def _trainers(self) -> Iterator[SimpleTrainer]:
        """Yield those that are trained; what is printed meanwhile goes to the one's log."""
        raise NotImplementedError

    def _step(self, batch: Any) -> Sequence[dict[str, Any]]:
        """Make a step of each trainer; return each one's losses by name."""
        raise NotImplementedError

    def _report(self, trainer: Any, *progress: Any) -> None:
        """Have a trainer report. Raises UserError if its training diverged."""
        trainer.report(*progress)

    def _run_batches(self, batches: Iterable[Any], num_batches: int) -> None:
        """Make a step on each batch; print and record the losses.

        Raises:
            UserError: none of the training images could be read, or training diverged.
        """
        trainers = list(self._trainers())
        for trainer in trainers:
            trainer.set_model_mode("train")
            trainer.num_batches, trainer.batch_idx = num_batches, -1
        midways = [trainer.take_midway() for trainer in trainers]
        losses = [midway.losses for midway in midways]
        first, midway = trainers[0], midways[0]  # they are all at one place
        batch_time, data_time = AverageMeter(), AverageMeter()
        title = f"epoch {first.epoch + 1}/{first.max_epoch}"
        title += f", {len(trainers)} runs" if len(trainers) > 1 else ""
        progress = Progress(with_last(batches), num_batches, title)
        hold_back()
        end = time.perf_counter()
        for done, (batch, is_last) in enumerate(progress, start=1):
            for trainer in trainers:
                trainer.batch_idx = done - 1
                if is_last:  # fewer than expected if images were skipped
                    trainer.num_batches = done
            if done <= midway.batches:
                continue
            midway.restore_rng()
            data_time.update(time.perf_counter() - end)
            for meter, values in zip(losses, self._step(batch), strict=True):
                meter.update(values)
            batch_time.update(time.perf_counter() - end)
            every = first.cfg.TRAIN.PRINT_FREQ
            if is_last or (every > 0 and done % every == 0):
                for trainer, meter in zip(self._trainers(), losses, strict=True):
                    self._report(trainer, meter, batch_time, data_time, progress)
            if stop_wanted() or (is_last and first.validates):
                # Before a validation too: that takes its time, and changes nothing.
                self._write_midway(done, losses)
            end = time.perf_counter()
        if first.batch_idx < 0:
            raise UserError("none of the training images could be read")
        midway.restore_rng()
        for trainer, meter in zip(trainers, losses, strict=True):
            trainer.epoch_losses = {name: m.avg for name, m in meter.meters.items()}

    def _write_midway(self, done: int, losses: Sequence[MetricMeter]) -> None:
        """Write what each trainer goes on from, and stop if that is wanted."""
        for trainer, meter in zip(self._trainers(), losses, strict=True):
            trainer.write_midway(done, meter)
        stop_if_wanted()
