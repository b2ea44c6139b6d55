"""Runs of one method that differ in their seed, trained as one: `train.py --seed 1 2 3`.

Their frozen towers are the same, so one batched pass serves all runs: the trained parameters are
stacked, and the method's own features and losses are mapped over the stack. Each run keeps its
folder, records and checkpoints, as if it had been trained alone.

Letters in shape comments: R runs, B images, D embedding width.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence

import torch
from torch import nn
from torch.func import functional_call, vmap

from dassl.config import CfgNode
from dassl.engine import TrainerBase, build_trainer, start_log
from dassl.engine.progress import Progress
from dassl.optim import build_optimizer
from dassl.utils import MetricMeter, UserError, log_to, set_random_seed, setup_logger

from .base import PromptTrainer
from .graphs import GraphedStep


def build_runs(cfgs: Sequence[CfgNode], train: bool = True) -> list[PromptTrainer]:
    """Build the trainers of runs that differ in seed and folder; each log begins with its own.

    Raises:
        UserError: the trainer isn't one of methods in this code's form.
    """
    runs = []
    for cfg in cfgs:
        start_log(cfg, train=train)
        setup_logger(None)
        with log_to(cfg.OUTPUT_DIR):
            print(f"Setting fixed seed: {cfg.SEED}")
            set_random_seed(cfg.SEED)
            runs.append(build_trainer(cfg))
    if not all(isinstance(run, PromptTrainer) for run in runs):
        raise UserError(
            f"{cfgs[0].TRAINER.NAME} can't train several seeds at once: give one --seed"
        )
    return runs


class SideBySide(TrainerBase):
    """Trains the runs in step. Raises UserError where they can't be: unequal epochs or steps."""

    def __init__(self, runs: Sequence[PromptTrainer]) -> None:
        super().__init__()
        self.runs = list(runs)
        self.cfg = runs[0].cfg

    def train(self) -> None:
        """Train, test and record every run."""
        if not self.runs[0].method.trained():
            for run in self.each():
                run.train()
            return
        for run in self.each():
            run.before_train()
        done = {run.start_epoch for run in self.runs}
        if len(done) > 1:
            raise UserError(
                f"the runs were interrupted after {', '.join(map(str, sorted(done)))} epochs: "
                "let those behind catch up, one --seed at a time"
            )
        super().train(done.pop(), self.cfg.OPTIM.MAX_EPOCH)

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
        lengths = {len(run.train_loader_x) for run in self.runs}
        if len(lengths) > 1:
            raise UserError(f"the runs have {sorted(lengths)} steps per epoch: give one --seed")
        steps = lengths.pop()
        stack = Stack(self.runs)
        meters = [MetricMeter() for _ in self.runs]
        batches = zip(*(run.training_batches() for run in self.runs), strict=True)
        title = f"epoch {self.epoch + 1}/{self.max_epoch}, {len(self.runs)} runs"
        progress = Progress(batches, steps, title)
        for group in progress:
            for meter, losses in zip(meters, stack.step(group), strict=True):
                meter.update(losses)
        stack.give_back()
        for run, meter in zip(self.each(), meters, strict=True):
            run.epoch_losses = {name: m.avg for name, m in meter.meters.items()}
            run.check_losses(meter)
            progress.print(f"epoch [{self.epoch + 1}/{self.max_epoch}] seed {run.cfg.SEED} {meter}")
            run.update_lr()

    def after_epoch(self) -> None:
        for run in self.each():
            run.after_epoch()
            run.end_epoch()

    def after_train(self) -> None:
        for run in self.each():
            run.epoch = self.epoch
            run.after_train()


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
    """The trained parameters of R runs with a leading R, their optimiser, and one step for all."""

    def __init__(self, runs: Sequence[PromptTrainer]) -> None:
        self.runs = runs
        first = runs[0]
        self.scaler = first.scaler
        self.optims = [run._optims[run.model_name] for run in runs]
        for run in runs:
            run.method.train()
        self.step_module = _Step(first)
        # Parameters by place: `functional_call` wants the module's names for them.
        places = {id(p): name for name, p in self.step_module.named_parameters()}
        self.names = {key: places[id(p)] for key, p in first.method.trained().items()}
        self.own = [run.method.trained() for run in runs]
        self.stacked = {
            key: torch.stack([own[key].detach() for own in self.own]).requires_grad_()
            for key in self.names
        }
        self._take_optimisers()
        self.gradients = self.compute_gradients
        if isinstance(first.gradients, GraphedStep):
            self.gradients = GraphedStep(self.compute_gradients, self.stacked.values())

    def _take_optimisers(self) -> None:
        """One optimiser over the stack, in the state of the runs' own ones."""
        key_of = {id(p): key for key, p in self.own[0].items()}
        groups = [
            {"params": [self.stacked[key_of[id(p)]] for p in group["params"]], "lr": group["lr"]}
            for group in self.optims[0].param_groups
        ]
        self.optim = build_optimizer(None, self.runs[0].cfg.OPTIM, groups)
        for key, parameter in self.stacked.items():
            states = [
                o.state.get(own[key], {}) for o, own in zip(self.optims, self.own, strict=True)
            ]
            self.optim.state[parameter] = {
                name: torch.stack([state[name] for state in states])
                if _per_element(value, self.own[0][key])
                else value
                for name, value in states[0].items()
            }

    def give_back(self) -> None:
        """Hand parameters and optimiser states back to the runs."""
        for r, (optim, own) in enumerate(zip(self.optims, self.own, strict=True)):
            optim._opt_called = True  # its steps were the stack's: the schedule needn't warn
            for key, parameter in own.items():
                with torch.no_grad():
                    parameter.copy_(self.stacked[key][r])
                optim.state[parameter] = {
                    name: value[r].clone()
                    if _per_element(value, self.stacked[key])
                    else value.clone()
                    if torch.is_tensor(value)
                    else value
                    for name, value in self.optim.state[self.stacked[key]].items()
                }

    def step(self, batches: Sequence[dict]) -> list[dict[str, torch.Tensor]]:
        """One step of every run on its own batch; → each run's losses by name."""
        inputs = []
        for run, batch in zip(self.runs, batches, strict=True):
            image, label = run.parse_batch_train(batch)
            inputs.append({"image": image, "label": label, **run.known_features(batch)})
        # Image (R,B,…), label (R,B), features (R,B,D).
        losses = self.gradients({k: torch.stack([x[k] for x in inputs]) for k in inputs[0]})
        self.scaler.step(self.optim)
        self.scaler.update()
        return [{k: v[r] for k, v in losses.items()} for r in range(len(self.runs))]

    def compute_gradients(self, inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Each run's losses (R,); their gradients replace those in the stacked parameters."""

        def losses_of(parameters, inputs):
            named = {self.names[key]: value for key, value in parameters.items()}
            return functional_call(self.step_module, named, (), inputs, strict=False)

        with warnings.catch_warnings():
            # Attention has no batching rule on some devices and is looped over the runs there.
            warnings.filterwarnings("ignore", message="There is a performance drop")
            losses = vmap(losses_of)(self.stacked, inputs)  # each (R,)
        total = sum(losses.values())
        self.optim.zero_grad()
        self.scaler.scale(total.sum()).backward()
        losses = {"loss": total, **{f"loss_{name}": value for name, value in losses.items()}}
        return {name: value.detach() for name, value in losses.items()}


def _per_element(value, parameter: torch.Tensor) -> bool:
    """Whether an optimiser's entry has the parameter's shape (a momentum), not one for all."""
    return torch.is_tensor(value) and value.shape == parameter.shape and value.dim() > 0
