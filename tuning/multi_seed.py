"""Runs that differ in seed, or λ, trained as one: `train.py --seed 1 2 3`, `train.py … --and …`.

Their frozen towers are the same, so one batched pass serves all runs (stack.py). Each run keeps its
optimizer, loss scale, folder, records and checkpoints, as if it had been trained alone; one that
diverges ends, and the others go on.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from itertools import tee, zip_longest
from pathlib import Path
from typing import Any

from dassl.config import CfgNode, config_values
from dassl.engine import TRAINER_REGISTRY, TrainerBase, build_trainer, start_log
from dassl.engine.loop import BatchLoop
from dassl.engine.records import Records
from dassl.utils import (
    UserError,
    log_to,
    set_random_seed,
    setup_logger,
)

from .recorded import Records as StepRecords
from .stack import APART, Stack
from .step import Losses
from .trainer import PromptTrainer


def check_folders(cfgs: Sequence[CfgNode]) -> None:
    """Raise UserError where several runs would write to one folder, or go on from one."""
    for key, advice in (("OUTPUT_DIR", "each --output-dir"), ("RESUME", "each its own --resume")):
        named = [Path(cfg[key]).resolve() for cfg in cfgs if cfg[key]]
        twice = next((folder for folder in named if named.count(folder) > 1), None)
        if twice is not None:
            raise UserError(f"several runs, but one folder, {twice}: give {advice}")


def build_runs(cfgs: Sequence[CfgNode], logs: bool = True) -> list[PromptTrainer]:
    """Build the trainers of runs to train together; each log begins with its own.

    Args:
        cfgs: of the runs.
        logs: whether logs are written.

    Raises:
        UserError: they can't be trained together, see `differences`.
    """
    labels = differences(cfgs)
    loaders = len({cfg.SEED for cfg in cfgs})
    runs = []
    for cfg, label in zip(cfgs, labels, strict=True):
        cfg = cfg.clone()
        cfg.defrost()
        # What was meant for one run's loader serves those of all.
        cfg.DATALOADER.DECODED_GB /= loaders
        cfg.DATALOADER.NUM_WORKERS = -(-cfg.DATALOADER.NUM_WORKERS // loaders)
        cfg.freeze()
        with own_log(cfg) if logs else nullcontext():
            run: Any = build_trainer(cfg)
            run.label = label
            runs.append(run)
    return runs


def differences(cfgs: Sequence[CfgNode]) -> list[str]:
    """What tells each of several runs from the others, such as "seed 1 weight 0.3".

    Raises:
        UserError: they differ in what the trainer's runs side by side may not differ in.
    """
    name = cfgs[0].TRAINER.NAME
    trainer = TRAINER_REGISTRY.get(name)
    may_differ = trainer.may_differ
    if not may_differ:
        own = trainer.own_step() if issubclass(trainer, PromptTrainer) else []
        why = f"a step of its own ({', '.join(own)})" if own else "no step for several runs at once"
        raise UserError(f"{name} has {why}: {APART}")
    values = [config_values(cfg, leave_out=("OUTPUT_DIR", "RESUME")) for cfg in cfgs]
    differing = [
        key
        for key in dict.fromkeys(key for each in values for key in each)
        if any(each.get(key) != values[0].get(key) for each in values)
    ]
    wrong = [key for key in differing if key not in may_differ]
    if wrong:
        raise UserError(
            f"runs of {name} that are trained together may differ in {', '.join(may_differ)} and "
            f"their folders; these differ in {', '.join(wrong)}"
        )
    return [
        " ".join(f"{key.rpartition('.')[2].lower()} {each[key]}" for key in differing)
        for each in values
    ]


@contextmanager
def own_log(cfg: CfgNode) -> Iterator[None]:
    """Inside, what one of several runs prints goes to its log, which starts here, seeded."""
    start_log(cfg)
    setup_logger(None)
    with log_to(cfg.OUTPUT_DIR):
        if cfg.SEED >= 0:
            print(f"Setting fixed seed: {cfg.SEED}")
            set_random_seed(cfg.SEED)
        yield


class SideBySide(BatchLoop, TrainerBase):
    """Trains the runs in step.

    Raises UserError where they can't be: unequal steps, or a trainer that does what a stack can't.
    """

    def __init__(self, runs: Sequence[PromptTrainer]) -> None:
        super().__init__()
        self.runs = list(runs)
        self.diverged: list[str] = []
        self.failed: dict[PromptTrainer, UserError] = {}  # in the epoch under way
        self.recorded_of: list[PromptTrainer] = []  # whose steps `records` are
        self.cfg = runs[0].cfg
        for run in self.runs:
            leader = self.leader(run)
            run.train_loader_x = run.dm.train_loader_x = leader.train_loader_x
            if run.further:
                name = type(run).__name__
                raise UserError(f"{name} takes several data sets (DATASET.FURTHER): {APART}")
            if models := run.undeclared():
                raise UserError(
                    f"{type(run).__name__} registers {', '.join(models)} with parameters that its "
                    f"method doesn't declare as trained: {APART}"
                )

    def leader(self, run: PromptTrainer) -> PromptTrainer:
        """The first run of the same seed: its views, and their order, are those of all of them."""
        seed = run.cfg.SEED
        return next(other for other in self.runs if other is run or (other.cfg.SEED == seed >= 0))

    def train(self) -> None:  # type: ignore[override]  # as Dassl has it
        """Train, test and record every run. Raises UserError at the end if some diverged."""
        if not self.runs[0].method.trained():
            for run in self.each():
                run.train()
            return
        everyone = self.runs
        try:
            self._train_in_step(everyone)
        finally:
            for run in everyone:
                run.end_loading()
        self.runs = everyone
        if self.diverged:
            ended = f"{len(self.diverged)} of {len(everyone)} runs ended early"
            raise UserError(f"{ended}: {'; '.join(self.diverged)}")

    def _train_in_step(self, everyone: Sequence[PromptTrainer]) -> None:
        """Train those that are at one place together."""
        bring_in_step([run._records for run in everyone])
        for run in self.each():
            run.before_train()
        # Where one was interrupted alone, or has ended, they go on apart.
        places = [(run.start_epoch, run.batches_done) for run in everyone]
        for place in sorted(set(places)):
            self.runs = [run for run, own in zip(everyone, places, strict=True) if own == place]
            for run in self.runs:
                run.side_by_side = run._records.together = len(self.runs)
            super().train(place[0], self.cfg.OPTIM.MAX_EPOCH)

    def each(self) -> Iterator[PromptTrainer]:
        """The runs in turn, what is printed meanwhile going to each one's log."""
        for run in self.runs:
            with log_to(run.cfg.OUTPUT_DIR):
                yield run

    def begin_epoch(self) -> None:
        """Begin the epoch of every run, in its own log."""
        for run in self.each():
            run.epoch = self.epoch
            run.begin_epoch()
            run.before_epoch()

    def run_epoch(self) -> None:
        """All runs' batches in step; a run that diverged ends alone.

        Raises:
            UserError: the runs have unequal numbers of steps, or unequal batches.
        """
        if not self.runs:
            return  # all diverged
        lengths = {run.batches_per_epoch for run in self.runs}
        if len(lengths) > 1:
            raise UserError(f"the runs have {sorted(lengths)} steps per epoch: train them apart")
        if self.recorded_of != self.runs:
            self.recorded_of, self.records = list(self.runs), StepRecords()
        self.stack = Stack(self.runs, self.records)
        self.failed = {}
        try:
            self._run_batches(_in_step(self._batches()), lengths.pop())
        finally:
            self.stack.give_back()
        going_on = []
        for run in self.each():
            try:
                if run in self.failed:
                    raise self.failed[run]
                run.check_parameters()
            except UserError as error:
                self._end(run, error)
            else:
                going_on.append(run)
        self.runs = going_on

    def _trainers(self) -> Iterator[PromptTrainer]:
        return self.each()

    def _step(self, batch: Sequence[dict]) -> list[Losses]:
        return self.stack.step(batch)

    def _report(self, trainer: PromptTrainer, *progress: Any) -> None:
        """Keep what a diverged run raises: it ends alone, after the epoch."""
        try:
            super()._report(trainer, *progress)
        except UserError as error:
            self.failed.setdefault(trainer, error)

    def _end(self, run: PromptTrainer, error: UserError) -> None:
        """Let one run end alone."""
        self.diverged.append(f"{run.label}: {error}")
        print(self.diverged[-1], flush=True)
        self._hand_over(run)

    def _going_on(self, *calls: str) -> list[PromptTrainer]:
        """Have each run do something; → those that could."""
        going_on = []
        for run in self.each():
            try:
                for call in calls:
                    getattr(run, call)()
            except UserError as error:
                self._end(run, error)
            else:
                going_on.append(run)
        return going_on

    def _hand_over(self, ended: PromptTrainer) -> None:
        """Leave the views that are being encoded to those that read the same ones."""
        for run in self.runs:
            if run.train_loader_x is ended.train_loader_x:
                run.ahead = {**ended.ahead, **run.ahead}

    def _batches(self) -> list[Iterable[dict]]:
        """Each run's batches of the epoch; runs of one seed read the same ones."""
        leaders = [self.leader(run) for run in self.runs]
        copies = {
            id(leader): iter(tee(leader.training_batches(), leaders.count(leader)))
            for leader in dict.fromkeys(leaders)
        }
        return [next(copies[id(leader)]) for leader in leaders]

    def after_epoch(self) -> None:
        """Every run's own, in its own log."""
        self.runs = self._going_on("after_epoch", "end_epoch")

    def after_train(self) -> None:
        """Every run's own: its final test and result."""
        for run in self.runs:
            run.epoch = self.epoch
        self.runs = self._going_on("after_train")


def bring_in_step(records: Sequence[Records]) -> None:
    """Where a kill fell between the records of runs in step, take back those that are ahead.

    Apart they would come to other last digits: sums over a stack are rounded in another order.
    """
    with suppress(UserError, LookupError, TypeError, AttributeError):  # the run itself says what
        places = [each.places() for each in records]
        now = {place for place, _ in places}
        for each, (place, earlier) in zip(records, places, strict=True):
            if earlier is not None and earlier < place and earlier in now:
                each.step_back()


def _in_step(loaders: Sequence[Iterable[dict]]) -> Iterator[tuple[dict, ...]]:
    """One batch of each run at a time. Raises UserError where their sizes differ."""
    for group in zip_longest(*loaders):
        if len({0 if batch is None else len(batch["label"]) for batch in group}) > 1:
            raise UserError("images were left out, so the runs' batches differ: train them apart")
        yield group
