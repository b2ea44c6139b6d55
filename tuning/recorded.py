"""A training step's operations recorded once and carried out again: on a CPU, for small steps.

A step on a small tower is some thousand short operations, and half of its time goes into what leads
to them: modules, autograd, for runs side by side vmap. Carried out from a record the numbers are
the same to the bit; that is checked on other batches before a record is used. Where a step can't be
recorded, as it draws, looks at values, changes what its method holds or is large, it goes on as it
was.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch

from dassl.config import CfgNode

from .cuda_graphs import ON_HOST, GraphedStep
from .held import Held
from .method import Method
from .operations import CannotRecord, Operations, Program

Inputs = dict[str, torch.Tensor]
Losses = dict[str, torch.Tensor]
Compute = Callable[[Inputs], Losses]

_BEFORE = 6  # steps as they are before one is recorded: a short run wouldn't win it back
_ALIGNED = 64  # bytes that PyTorch's own memory begins at a multiple of
_CHECKED = 2  # steps from a record that are compared, and moves to other parameters that are


@dataclass
class _Record:
    """Of steps of one kind: how many there were, and how they are carried out again."""

    steps: int = 0
    program: Program | None = None
    names: list[str] = field(default_factory=list)  # of the losses
    moved: list[bool] = field(default_factory=list)  # which parameters get a gradient
    on: tuple = ()  # what the call is bound to
    call: Callable[..., tuple[torch.Tensor, ...]] | None = None
    moves: int = 0  # to other parameters
    to_check: int = _CHECKED


class Records:
    """What is recorded of some runs' steps; it outlasts the stack of one epoch."""

    def __init__(self) -> None:
        self.works = True
        self.why = ""  # it doesn't
        self.held: Held | None = None
        self.of: dict[tuple, _Record] = {}


class RecordedStep:
    """`compute`, from a record where that is possible.

    Args:
        compute: takes inputs by name, leaves gradients in the parameters' `.grad` (set, not added
            to), returns losses.
        parameters: those that get gradients.
        held: gives what the methods hold now.
        fixed: gives what stands for something of it, the same for the runs of `records`' makers.
        records: those of an earlier instance, for the same runs.
    """

    def __init__(
        self,
        compute: Compute,
        parameters: Sequence[torch.Tensor],
        held: Callable[[], Held],
        fixed: Callable[[], Sequence[torch.Tensor]] = tuple,
        records: Records | None = None,
    ) -> None:
        self.compute = compute
        self.parameters = list(parameters)
        self.held = held
        self.fixed = fixed
        self.records = records or Records()

    def __call__(self, inputs: Inputs) -> Losses:
        """The losses of one step; its gradients are in the parameters."""
        records = self.records
        if not records.works or torch.is_anomaly_enabled():
            return self.compute(inputs)
        held = self.held()
        if not held.same_as(records.held):
            records.held = held
            records.of.clear()
        if any(x.is_floating_point() and x.data_ptr() % _ALIGNED for x in inputs.values()):
            return self.compute(inputs)  # sums may be rounded by where their numbers lie
        record = records.of.setdefault(self._kind(inputs), _Record())
        record.steps += 1
        if record.steps <= _BEFORE:
            return self.compute(inputs)
        whole = {name: _whole(x) for name, x in inputs.items()}
        if record.program is None:
            return self._recorded(record, whole, held)
        if not record.program.holds():
            records.of.clear()
            return self.compute(inputs)
        losses = self._again(record, record.program, whole)
        if not record.to_check:
            return losses
        return self._checked(record, inputs, losses)

    def _kind(self, inputs: Inputs) -> tuple:
        places = [x.data_ptr() for x in inputs.values()]
        return (
            *((name, x.shape, x.stride(), x.dtype) for name, x in inputs.items()),
            *map(places.index, places),  # one may be another
            *(p.requires_grad for p in self.parameters),
            *(int(x) for name, x in inputs.items() if name in ON_HOST),
        )

    def _recorded(self, record: _Record, inputs: Inputs, held: Held) -> Losses:
        """The step, recorded."""
        known = [x for name, x in inputs.items() if name in ON_HOST]
        with Operations(known) as operations:
            losses = self.compute(inputs)
        gradients = [p.grad for p in self.parameters]
        try:
            if not self.held().same_as(held):
                raise CannotRecord("it changes what its method holds")
            record.program = Program(
                operations,
                [*self.parameters, *self.fixed()],
                len(self.parameters),
                list(inputs.values()),
                [*losses.values(), *(g for g in gradients if g is not None)],
            )
        except CannotRecord as why:
            self._give_up(str(why))
        record.names = list(losses)
        record.moved = [g is not None for g in gradients]
        return losses

    def _again(self, record: _Record, program: Program, inputs: Inputs) -> Losses:
        """The step, from its record."""
        bound = [*self.parameters, *self.fixed()]
        on = (*map(id, bound), *(x.data_ptr() for x in bound))
        if record.call is None or on != record.on:
            record.call, record.on = program.on(bound), on
            if record.moves < _CHECKED:
                record.to_check = max(record.to_check, 1)
            record.moves += 1
        results = iter(record.call(*inputs.values()))
        losses = {name: next(results) for name in record.names}
        for parameter, moved in zip(self.parameters, record.moved, strict=True):
            parameter.grad = next(results) if moved else None
        return losses

    def _checked(self, record: _Record, inputs: Inputs, losses: Losses) -> Losses:
        """The step as it is, which what the record gave is compared with."""
        found = [*losses.values(), *(p.grad for p in self.parameters)]
        losses = self.compute(inputs)
        wanted = [*losses.values(), *(p.grad for p in self.parameters)]
        if len(found) == len(wanted) and all(map(_same, found, wanted)):
            record.to_check -= 1
        else:
            self._give_up("carried out again it gives other numbers")
            print("A step's record gives other numbers than the step: going on without")
        return losses

    def _give_up(self, why: str) -> None:
        self.records.works, self.records.why = False, why
        self.records.of.clear()


def kind_of_steps(
    cfg: CfgNode, method: Method, device: torch.device
) -> type[RecordedStep] | type[GraphedStep] | None:
    """What carries a method's usual steps out from a record; None: nothing does."""
    watched = any(
        module._forward_hooks or module._forward_pre_hooks or module._backward_hooks
        for module in method.modules()
    )
    if watched or not cfg.MODEL.FAST:
        return None
    if device.type == "cpu":
        return RecordedStep
    return GraphedStep if device.type == "cuda" and cfg.TRAIN.CUDA_GRAPH else None


def _whole(x: torch.Tensor) -> torch.Tensor:
    """A tensor that is all of its memory."""
    is_whole = x.is_contiguous() and x.untyped_storage().nbytes() == x.nbytes
    return x if is_whole else x.contiguous().clone()


def _same(a: torch.Tensor | None, b: torch.Tensor | None) -> bool:
    """Whether they are equal to the bit, NaN as NaN."""
    if a is None or b is None:
        return a is b
    return a.dtype == b.dtype and torch.equal(a.nan_to_num(), b.nan_to_num())
