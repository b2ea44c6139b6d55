"""Runs that differ in seed, or λ, trained as one: `train.py --seed 1 2 3`, `train.py … --and …`.

Their frozen towers are the same, so one batched pass serves all runs: the trained parameters are
stacked, and the method's own features and losses are mapped over the stack. Each run keeps its
optimiser, loss scale, folder, records and checkpoints, as if it had been trained alone; one that
diverges ends, and the others go on.

Letters in shape comments: R runs, B images, D embedding width.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from itertools import tee, zip_longest
from pathlib import Path

import torch
from torch import nn
from torch.func import functional_call, vmap

from dassl.config import CfgNode, config_values
from dassl.engine import TRAINER_REGISTRY, TrainerBase, build_trainer, start_log
from dassl.engine.progress import Progress, with_last
from dassl.utils import (
    UserError,
    hold_back,
    log_to,
    set_random_seed,
    setup_logger,
    stop_if_wanted,
    stop_wanted,
)

from .cuda_graphs import GraphedStep
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
            run = build_trainer(cfg)
            run.label = label
            runs.append(run)
    return runs


def differences(cfgs: Sequence[CfgNode]) -> list[str]:
    """What tells each of several runs from the others, such as "seed 1 weight 0.3".

    Raises:
        UserError: they differ in what the trainer's runs side by side may not differ in.
    """
    name = cfgs[0].TRAINER.NAME
    may_differ = TRAINER_REGISTRY.get(name).may_differ
    alone = "give one --seed, and no --and"
    if not may_differ:
        raise UserError(f"{name} can't train several runs at once: {alone}")
    if own := own_steps(TRAINER_REGISTRY.get(name)):
        raise UserError(
            f"{name} has its own {', '.join(own)}, which runs trained together don't call: {alone}"
        )
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


# What of a trainer's step the runs that are trained together do in one for all.
STEP = ("run_epoch", "forward_backward", "compute_gradients", "model_zero_grad", "model_backward")


def own_steps(trainer: type[PromptTrainer]) -> list[str]:
    """Which functions of `STEP` the trainer defines itself, and so wants called."""
    return [name for name in STEP if getattr(trainer, name) is not getattr(PromptTrainer, name)]


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


class SideBySide(TrainerBase):
    """Trains the runs in step. Raises UserError where they can't be: unequal steps."""

    def __init__(self, runs: Sequence[PromptTrainer]) -> None:
        super().__init__()
        self.runs = list(runs)
        self.diverged: list[str] = []
        self.cfg = runs[0].cfg
        for run in self.runs:
            leader = self.leader(run)
            run.train_loader_x = run.dm.train_loader_x = leader.train_loader_x

    def leader(self, run: PromptTrainer) -> PromptTrainer:
        """The first run of the same seed: its views, and their order, are those of all of them."""
        seed = run.cfg.SEED
        return next(other for other in self.runs if other is run or (other.cfg.SEED == seed >= 0))

    def train(self) -> None:
        """Train, test and record every run. Raises UserError at the end if some diverged."""
        if not self.runs[0].method.trained():
            for run in self.each():
                run.train()
            return
        for run in self.each():
            run.before_train()
        everyone = self.runs
        # Where an interruption fell between two runs' records they go on apart.
        places = [(run.start_epoch, run.batches_done) for run in everyone]
        for place in sorted(set(places)):
            self.runs = [run for run, own in zip(everyone, places, strict=True) if own == place]
            for run in self.runs:
                run.side_by_side = len(self.runs)
            super().train(place[0], self.cfg.OPTIM.MAX_EPOCH)
        self.runs = everyone
        if self.diverged:
            ended = f"{len(self.diverged)} of {len(everyone)} runs ended early"
            raise UserError(f"{ended}: {'; '.join(self.diverged)}")

    def each(self) -> Iterator[PromptTrainer]:
        """The runs in turn, what is printed meanwhile going to each one's log."""
        for run in self.runs:
            with log_to(run.cfg.OUTPUT_DIR):
                yield run

    def begin_epoch(self) -> None:
        for run in self.each():
            run.epoch = self.epoch
            run.begin_epoch()
            run.before_epoch()

    def run_epoch(self) -> None:
        if not self.runs:
            return  # all diverged
        lengths = {len(run.train_loader_x) for run in self.runs}
        if len(lengths) > 1:
            raise UserError(f"the runs have {sorted(lengths)} steps per epoch: train them apart")
        steps = lengths.pop()
        stack = Stack(self.runs)
        places = [run.take_midway() for run in self.runs]
        meters = [place.losses for place in places]
        batches = with_last(_in_step(self._batches()))
        title = f"epoch {self.epoch + 1}/{self.max_epoch}, {len(self.runs)} runs"
        progress = Progress(batches, steps, title)
        hold_back()
        for done, (group, is_last) in enumerate(progress):
            if done < places[0].batches:
                continue
            places[0].restore_rng()
            for meter, losses in zip(meters, stack.step(group), strict=True):
                meter.update(losses)
            if is_last:
                for run in self.runs:
                    run.update_lr()
            if stop_wanted() or (is_last and self.runs[0].validates):
                stack.give_back()
                for run, meter in zip(self.each(), meters, strict=True):
                    run.write_midway(done + 1, meter)
                stop_if_wanted()
        places[0].restore_rng()
        stack.give_back()
        going_on = []
        for run, meter in zip(self.each(), meters, strict=True):
            run.epoch_losses = {name: m.avg for name, m in meter.meters.items()}
            try:
                run.check_losses(meter)
                run.check_parameters()
            except UserError as error:
                self._end(run, error)
                continue
            progress.print(f"epoch [{self.epoch + 1}/{self.max_epoch}] {run.label} {meter}")
            going_on.append(run)
        self.runs = going_on

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
        """Leave the epoch whose views are being encoded to those that read the same ones."""
        for run in self.runs:
            if run.train_loader_x is ended.train_loader_x:
                run.next_epoch = run.next_epoch or ended.next_epoch

    def _batches(self) -> list[Iterable[dict]]:
        """Each run's batches of the epoch; runs of one seed read the same ones."""
        leaders = [self.leader(run) for run in self.runs]
        copies = {
            id(leader): iter(tee(leader.training_batches(), leaders.count(leader)))
            for leader in dict.fromkeys(leaders)
        }
        return [next(copies[id(leader)]) for leader in leaders]

    def after_epoch(self) -> None:
        self.runs = self._going_on("after_epoch", "end_epoch")

    def after_train(self) -> None:
        for run in self.runs:
            run.epoch = self.epoch
        self.runs = self._going_on("after_train")


def _in_step(loaders: Sequence[Iterable[dict]]) -> Iterator[tuple[dict, ...]]:
    """One batch of each run at a time. Raises UserError where their sizes differ."""
    for group in zip_longest(*loaders):
        if len({0 if batch is None else len(batch["label"]) for batch in group}) > 1:
            raise UserError("images were left out, so the runs' batches differ: train them apart")
        yield group


class _Step(nn.Module):
    """A method's losses of a batch, as a module's forward."""

    def __init__(self, run: PromptTrainer) -> None:
        super().__init__()
        self.method = run.method
        self.autocast = run.autocast

    def forward(
        self, image: torch.Tensor, label: torch.Tensor, **known: torch.Tensor
    ) -> dict[str, torch.Tensor]:
        with self.autocast():
            features = self.method.features(image, **known)
        return self.method.losses(features, label)


class Stack:
    """The trained parameters of R runs with a leading R, and one step for all.

    Until `give_back` each run's own parameters are its slices of them.
    """

    def __init__(self, runs: Sequence[PromptTrainer]) -> None:
        self.runs = runs
        first = runs[0]
        for run in runs:
            run.method.train()
        first.method.encoders.text.passes = len(runs)
        self.step_module = _Step(first)
        # Parameters by place: `functional_call` wants the module's names for them.
        places = {id(p): name for name, p in self.step_module.named_parameters()}
        self.names = {key: places[id(p)] for key, p in first.method.trained().items()}
        self.own = [run.method.trained() for run in runs]
        self.stacked = {
            key: torch.stack([own[key].detach() for own in self.own]).requires_grad_()
            for key in self.names
        }
        self.fixed = self._differing_buffers()
        for r, own in enumerate(self.own):
            for key, parameter in own.items():
                parameter.data = self.stacked[key].data[r]
        self.gradients = self.compute_gradients
        if isinstance(first.gradients, GraphedStep):
            self.gradients = GraphedStep(self.compute_gradients, self.stacked.values())

    def _differing_buffers(self) -> dict[str, torch.Tensor]:
        """What isn't trained but differs between the runs, such as λ, with a leading R."""
        others = [dict(_Step(run).named_buffers()) for run in self.runs[1:]]
        return {
            name: torch.stack([buffer, *(other[name] for other in others)])
            for name, buffer in self.step_module.named_buffers()
            if not all(_same(buffer, other[name]) for other in others)
        }

    def give_back(self) -> None:
        """Give the runs' parameters memory of their own again."""
        self.runs[0].method.encoders.text.passes = 1
        for own in self.own:
            for parameter in own.values():
                parameter.data = parameter.data.clone()
                parameter.grad = None

    def step(self, batches: Sequence[dict]) -> list[dict[str, torch.Tensor]]:
        """One step of every run on its own batch; → each run's losses by name."""
        inputs = []
        for run, batch in zip(self.runs, batches, strict=True):
            image, label = run.parse_batch_train(batch)
            inputs.append({"image": image, "label": label, **run.known_features(batch)})
        # Image (R,B,…), label (R,B), features (R,B,D).
        losses = self.gradients({k: torch.stack([x[k] for x in inputs]) for k in inputs[0]})
        for r, (run, own) in enumerate(zip(self.runs, self.own, strict=True)):
            for key, parameter in own.items():
                gradient = self.stacked[key].grad
                rests = gradient is None or not parameter.requires_grad
                parameter.grad = None if rests else gradient[r]
            run.model_update()
        return [{k: v[r] for k, v in losses.items()} for r in range(len(self.runs))]

    def compute_gradients(self, inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Each run's losses (R,); their gradients replace those in the stacked parameters."""

        def losses_of(parameters, fixed, inputs):
            named = {self.names[key]: value for key, value in parameters.items()}
            return functional_call(self.step_module, {**named, **fixed}, (), inputs, strict=False)

        with warnings.catch_warnings():
            # Attention has no batching rule on some devices and is looped over the runs there.
            warnings.filterwarnings("ignore", message="There is a performance drop")
            losses = vmap(losses_of)(self.stacked, self.fixed, inputs)  # each (R,)
        total = sum(losses.values())
        for parameter in self.stacked.values():
            parameter.grad = None
        # Each run's own scale; their sum's gradient is each one's in its slice.
        sum(run.scaler.scale(x) for run, x in zip(self.runs, total, strict=True)).backward()
        losses = {"loss": total, **{f"loss_{name}": value for name, value in losses.items()}}
        return {name: value.detach() for name, value in losses.items()}


def _same(a: torch.Tensor, b: torch.Tensor) -> bool:
    return a is b or torch.equal(a, b)
