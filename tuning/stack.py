"""The trained parameters of several runs stacked, and the method's own step mapped over them."""

from __future__ import annotations

import re
import warnings
from collections.abc import Sequence

import torch
from torch.func import functional_call, vmap

from dassl.utils import UserError

from .cuda_graphs import GraphedStep
from .held import Held, differ, own_modules
from .method import Method
from .recorded import RecordedStep, Records
from .step import BatchLosses, Compute, Losses, TrainingStep
from .trainer import PromptTrainer

APART = "train its seeds apart, each with its own command"


class Stack:
    """The trained parameters of R runs with a leading R, and one step for all.

    Until `give_back` each run's own parameters are its slices of them.

    records: what an earlier stack of the same runs recorded of its steps.
    """

    def __init__(self, runs: Sequence[PromptTrainer], records: Records | None = None) -> None:
        self.runs = runs
        self.records = records
        first = runs[0]
        self.name = type(first).__name__
        first.method.encoders.text.passes = len(runs)
        self.losses = BatchLosses(first.method, first.autocast)
        # Parameters by place: `functional_call` wants the module's names for them.
        places = {id(p): name for name, p in self.losses.named_parameters()}
        self.names = {key: places[id(p)] for key, p in first.method.trained().items()}
        self.own = [run.method.trained() for run in runs]
        self.modules = [own_modules(run.method) for run in runs]
        self.stacked = {
            key: torch.stack([own[key].detach() for own in self.own]).requires_grad_()
            for key in self.names
        }
        self.held: Held | None = None
        self.fixed: dict[str, torch.Tensor] = {}  # what differs and isn't trained, a leading R
        self.refresh()
        for r, own in enumerate(self.own):
            for key, parameter in own.items():
                parameter.data = self.stacked[key].data[r]
        self.training_step = TrainingStep(
            self.losses_of,
            self.zero_grad,
            self.scale,
            self.finish_step,
            self._again if first.steps is not None else None,
        )

    def refresh(self) -> None:
        """Take in what the runs hold beside their parameters, if it isn't what it was.

        Raises UserError where they hold different values that aren't buffers.
        """
        held = self._held()
        if held.same_as(self.held):
            return
        for (place, module), *others in zip(*self.modules, strict=True):
            for key, value in vars(module).items():
                if any(differ(value, vars(other).get(key)) for _, other in others):
                    raise UserError(
                        f"{self.name} holds {place}{key}, which differs between the runs and isn't "
                        f"a buffer: {APART}"
                    )
        # What isn't trained but differs between the runs, such as λ.
        buffers = [_untrained(run.method) for run in self.runs]
        for name, buffer in buffers[0].items():
            if any(own[name].shape != buffer.shape for own in buffers):
                held_by = name.removeprefix("method.")
                raise UserError(f"{self.name} holds {held_by} of several sizes: {APART}")
        self.fixed = {
            name: torch.stack([own[name] for own in buffers])
            for name, buffer in buffers[0].items()
            if any(differ(buffer, own[name]) for own in buffers)
        }
        self.held = held

    def _held(self) -> Held:
        """What the runs hold beside their trained parameters."""
        named = (
            (f"{r}: {place}", module)
            for r, modules in enumerate(self.modules)
            for place, module in modules
        )
        return Held(list(named))

    def _again(self, compute: Compute) -> Compute:
        """The same from a record."""

        def held() -> Held:
            assert self.held is not None
            return self.held

        parameters = list(self.stacked.values())
        if self.runs[0].steps is GraphedStep:
            return GraphedStep(compute, parameters, held)
        fixed = lambda: list(self.fixed.values())  # noqa: E731
        return RecordedStep(compute, parameters, held, fixed, self.records)

    def give_back(self) -> None:
        """Give the runs' parameters memory of their own again."""
        self.runs[0].method.encoders.text.passes = 1
        for own in self.own:
            for parameter in own.values():
                parameter.data = parameter.data.clone()
                parameter.grad = None

    def step(self, batches: Sequence[dict]) -> list[Losses]:
        """One step of every run on its own batch; → each run's losses by name."""
        inputs = [run.step_inputs(b) for run, b in zip(self.runs, batches, strict=True)]
        self.refresh()
        # Image (R,B,…), label (R,B), features (R,B,D).
        losses = self.training_step({k: torch.stack([x[k] for x in inputs]) for k in inputs[0]})
        return [{k: v[r] for k, v in losses.items()} for r in range(len(self.runs))]

    def losses_of(self, **batch: torch.Tensor) -> Losses:
        """Each run's losses (R,) of batches with a leading R."""
        changed: set[str] = set()

        def of_one(parameters, fixed, batch):
            named = {self.names[key]: value for key, value in parameters.items()}
            tensors = {**named, **fixed}
            losses = functional_call(self.losses, tensors, (), batch, strict=False)
            changed.update(name for name in fixed if tensors[name] is not fixed[name])
            return losses

        versions = {name: buffer._version for name, buffer in self.fixed.items()}
        with warnings.catch_warnings():
            # Attention has no batching rule on some devices and is looped over the runs there.
            warnings.filterwarnings("ignore", message="There is a performance drop")
            try:
                losses = vmap(of_one)(self.stacked, self.fixed, batch)
            except RuntimeError as error:
                # The second is what adding to something in place says, which vmap doesn't know.
                if not re.search("vmap|doesn't match the broadcast shape", str(error)):
                    raise
                why = str(error).splitlines()[0]
                raise UserError(f"{self.name}'s losses can't be mapped ({why}): {APART}") from error
        changed |= {name for name, v in versions.items() if self.fixed[name]._version != v}
        assert self.held is not None
        changed |= set(self._held().changed_since(self.held))
        if changed:
            names = ", ".join(sorted(re.split("[. ]", name)[-1] for name in changed))
            raise UserError(f"{self.name} changes {names} in its losses: {APART}")
        return losses

    def zero_grad(self) -> None:
        """Clear the stacked gradients; the runs' own are slices of them."""
        for parameter in self.stacked.values():
            parameter.grad = None

    def scale(self, total: torch.Tensor) -> torch.Tensor:
        """(R,) → (): each run's own scale; the sum's gradient is each one's in its slice."""
        return sum(run.scaler.scale(x) for run, x in zip(self.runs, total, strict=True))

    def finish_step(self) -> None:
        """Hand every run its gradients, and have it finish its step."""
        for r, (run, own) in enumerate(zip(self.runs, self.own, strict=True)):
            for key, parameter in own.items():
                gradient = self.stacked[key].grad
                if gradient is not None:  # an unused one has none, and one that rests gets none
                    gradient = gradient[r] if parameter.requires_grad else None
                parameter.grad = gradient
            run.finish_step()


def _untrained(method: Method) -> dict[str, torch.Tensor]:
    """Buffers, and parameters that aren't trained, by their names in `BatchLosses`."""
    module, trained = BatchLosses(method), {id(p) for p in method.trained().values()}
    parameters = {k: p for k, p in module.named_parameters() if id(p) not in trained}
    return {**dict(module.named_buffers()), **parameters}
