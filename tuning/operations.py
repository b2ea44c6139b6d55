"""A computation's tensor operations, recorded once and carried out again on other inputs.

What is recorded lies below autograd and vmap: the operations that they come to, of the backward
pass too, in their order. Carried out again they give the same bits without what led to them. Views
become one `as_strided` each, and what hangs on nothing that changes is computed once.

PyTorch's `make_fx` records the same, but loads its compiler and symbolic shapes for it (1.2 s), and
keeps each view; `torch.compile` makes other kernels, with other last digits.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

# Bytes that a recorded computation may make: of a larger one little is the calls, and what is
# recorded stays in memory meanwhile.
LARGEST = 256 << 20

_AS_STRIDED = torch.ops.aten.as_strided.default
# What brings values to Python without an operation.
_TO_HOST = {torch.Tensor.tolist, torch.Tensor.numpy, torch.Tensor.__array__}
_TAGS = ("data_dependent_output", "dynamic_output_shape")
_FORBIDDEN = {tag for name in _TAGS if (tag := getattr(torch.Tag, name, None)) is not None}
_SCALAR = torch.ops.aten._local_scalar_dense.default


class CannotRecord(Exception):
    """Why a computation can't be carried out again from its operations."""


@dataclass(frozen=True)
class _Call:
    func: Any
    args: tuple
    kwargs: dict[str, Any]
    outputs: Any

    def inputs(self) -> list[torch.Tensor]:
        return _tensors((self.args, self.kwargs))

    def made(self) -> list[torch.Tensor]:
        return _tensors(self.outputs)

    def written(self) -> list[torch.Tensor]:
        """What it changes in place."""
        found: list[torch.Tensor] = []
        for i, argument in enumerate(self.func._schema.arguments):
            if argument.alias_info is not None and argument.alias_info.is_write:
                value = self.args[i] if i < len(self.args) else self.kwargs.get(argument.name)
                found += _tensors(value)
        return found


class _NoHost(TorchFunctionMode):
    """Notes what reads values on the host without an operation."""

    def __init__(self, operations: Operations) -> None:
        super().__init__()
        self.operations = operations

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func in _TO_HOST:
            self.operations.refuse("it reads values on the host")
        return func(*args, **(kwargs or {}))


class Operations(TorchDispatchMode):
    """Records the operations inside the block; without harm to them, also where that is in vain.

    known: inputs whose values the host may read.
    """

    supports_higher_order_operators = True

    def __init__(self, known: Sequence[torch.Tensor] = ()) -> None:
        super().__init__()
        self.calls: list[_Call] = []
        self.refused = ""
        self._known = {_storage(x) for x in known}
        self._bytes: dict[int, int] = {}
        self._no_host = _NoHost(self)

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # skipping it would load it

    def __enter__(self):
        self._random = torch.get_rng_state()
        self._no_host.__enter__()
        return super().__enter__()

    def __exit__(self, *raised):
        super().__exit__(*raised)
        self._no_host.__exit__(*raised)
        if not torch.equal(self._random, torch.get_rng_state()):
            self.refuse("it draws random numbers")

    def refuse(self, why: str) -> None:
        """Record nothing more, and let go of what was."""
        self.refused = self.refused or why
        self.calls.clear()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        outputs = func(*args, **(kwargs or {}))
        if not self.refused:
            call = _Call(func, tuple(args), dict(kwargs or {}), outputs)
            if call.inputs() or call.made():
                self._note(call)
        return outputs

    def _note(self, call: _Call) -> None:
        func, made = call.func, call.made()
        if not isinstance(func, torch._ops.OpOverload):
            self.refuse(f"it calls {func}")
            return
        if func is _SCALAR and _storage(call.args[0]) in self._known:
            return
        named = zip(func._schema.arguments, call.args, strict=False)
        indices = [value for argument, value in named if argument.name == "indices"]
        masks = [x for x in _tensors(indices) if x.dtype in (torch.bool, torch.uint8)]
        dynamic = func.overloadpacket.__name__ != "index" and _FORBIDDEN.intersection(func.tags)
        drawn = any(isinstance(x, torch.Generator) for x in (*call.args, *call.kwargs.values()))
        if dynamic or masks or drawn or not made:
            self.refuse(f"it calls {func.overloadpacket.__name__}")
            return
        if any(map(_unusual, (*call.inputs(), *made))):
            self.refuse("it has tensors of an unusual kind")
            return
        for x in made:
            self._bytes[_storage(x)] = x.untyped_storage().nbytes()
        self.calls.append(call)  # its tensors stay, so that no other takes their place in memory
        if len(self.calls) % 64 == 0 and sum(self._bytes.values()) > LARGEST:
            self.refuse("it is large")


@dataclass(frozen=True)
class _View:
    """A tensor as a part of the memory that `base` begins."""

    storage: int
    size: tuple[int, ...]
    stride: tuple[int, ...]
    offset: int

    @classmethod
    def of(cls, x: torch.Tensor) -> _View:
        return cls(_storage(x), tuple(x.shape), x.stride(), int(x.storage_offset()))


class Program:
    """Recorded operations, to be carried out again.

    Args:
        operations: recorded.
        bound: tensors that others may stand for later; those in `changing` change between two
            times in place, the others don't.
        changing: how many of `bound`, from the first.
        inputs: contiguous tensors, each a whole memory: others stand for them each time.
        results: what is wanted.

    Raises:
        CannotRecord: it changes what it didn't make, or holds an unknown part of its inputs.
    """

    def __init__(
        self,
        operations: Operations,
        bound: Sequence[torch.Tensor],
        changing: int,
        inputs: Sequence[torch.Tensor],
        results: Sequence[torch.Tensor],
    ) -> None:
        if operations.refused:
            raise CannotRecord(operations.refused)
        self._bound = {_storage(x): i for i, x in enumerate(bound)}
        self._changing = {_storage(x) for x in bound[:changing]}
        self._inputs = {_storage(x): i for i, x in reversed(list(enumerate(inputs)))}
        self._bases: dict[int, torch.Tensor] = {_storage(x): x for x in (*bound, *inputs)}
        self._made: set[int] = set()
        self._constants: dict[int, torch.Tensor] = {}
        calls = self._without_views(operations.calls)
        written = {_storage(x) for call in calls for x in call.written()}
        if not written <= self._made:
            raise CannotRecord("it changes what it didn't make")
        once = self._of_constants(calls, written)
        each = _wanted([call for call in calls if id(call) not in once], map(_storage, results))
        first = [call for call in calls if id(call) in once]
        self._once = {_storage(x) for call in first for x in call.made()}
        self._fixed: list[_View] = []  # what isn't computed each time
        self._forward = self._compiled(each, inputs, results)
        self._first = _wanted(first, [view.storage for view in self._fixed])
        # A bound tensor's later stand-in may begin elsewhere in its memory.
        self._begin = {place: bound[i].storage_offset() for place, i in self._bound.items()}
        self._versions = [(x, x._version) for x in self._constants.values()]
        self._bases = {}

    def _without_views(self, calls: Sequence[_Call]) -> list[_Call]:
        """The calls that compute; learns which memory each tensor is of."""
        kept = []
        for call in calls:
            for x in call.inputs():
                place = _storage(x)
                if place not in self._bases:  # from outside
                    self._constants[place] = self._bases[place] = x
            new = [x for x in call.made() if _storage(x) not in self._bases]
            for x in new:
                self._bases.setdefault(_storage(x), x)
                self._made.add(_storage(x))
            if new or call.written():
                kept.append(call)
        return kept

    def _of_constants(self, calls: Sequence[_Call], written: set[int]) -> set[int]:
        """The ids of the calls whose results are always the same."""
        constant = (set(self._constants) | set(self._bound)) - self._changing
        found = set()
        for call in calls:
            places = {_storage(x) for x in (*call.inputs(), *call.made())}
            inputs = {_storage(x) for x in call.inputs()}
            if inputs <= constant and not places & written:
                found.add(id(call))
                constant |= places
        return found

    def _compiled(
        self,
        calls: Sequence[_Call],
        inputs: Sequence[torch.Tensor],
        results: Sequence[torch.Tensor],
    ) -> Callable[..., tuple[torch.Tensor, ...]]:
        """A function of the inputs and of what is computed once."""
        graph = fx.Graph()
        places = [graph.placeholder(f"x{i}") for i in range(len(inputs))]
        nodes = {_View.of(x): node for x, node in zip(inputs, places, strict=True)}
        nodes |= {_View.of(inputs[i]): places[i] for i in self._inputs.values()}
        for x in (x for call in (*calls, None) for x in (call.inputs() if call else results)):
            if (view := _View.of(x)) not in nodes and not self._changes(view.storage):
                self._check(x)
                nodes[view] = graph.placeholder(f"c{len(self._fixed)}")
                self._fixed.append(view)

        def node_of(x: torch.Tensor) -> fx.Node:
            view = _View.of(x)
            if view not in nodes:
                self._check(x)
                base = nodes[_View.of(self._bases[view.storage])]
                words = (list(view.size), list(view.stride), view.offset)
                nodes[view] = graph.call_function(_AS_STRIDED, (base, *words))
            return nodes[view]

        for call in calls:
            words = _mapped(call.args, node_of), _mapped(call.kwargs, node_of)
            node = graph.call_function(call.func, *words)
            single = isinstance(call.outputs, torch.Tensor)
            for i, x in enumerate([call.outputs] if single else call.outputs):
                if isinstance(x, torch.Tensor) and _View.of(x) not in nodes:
                    own = node if single else graph.call_function(operator.getitem, (node, i))
                    nodes[_View.of(x)] = own
        seen: set[int] = set()
        given = []
        for x in results:
            node = node_of(x)
            if not self._changes(_storage(x)) or _storage(x) in {*seen, *self._inputs}:
                node = graph.call_function(torch.ops.aten.clone.default, (node,))
            seen.add(_storage(x))
            given.append(node)
        graph.output(tuple(given))
        return fx.GraphModule({}, graph).forward

    def _check(self, x: torch.Tensor) -> None:
        base = self._bases.get(_storage(x))
        if base is None or base.dtype != x.dtype:
            raise CannotRecord("it has tensors of an unusual kind")

    def _changes(self, place: int) -> bool:
        """Whether what stands there is made anew each time."""
        return place in self._inputs or (place in self._made and place not in self._once)

    def holds(self) -> bool:
        """Whether all that was taken for constant is what it was."""
        return all(x._version == version for x, version in self._versions)

    @torch.no_grad()
    def on(self, bound: Sequence[torch.Tensor]) -> Callable[..., tuple[torch.Tensor, ...]]:
        """Of inputs → results, with these in place of what it was recorded with."""
        bases = {place: bound[i].detach() for place, i in self._bound.items()}
        bases |= {place: x.detach() for place, x in self._constants.items()}

        def part(view: _View) -> torch.Tensor:
            base = bases[view.storage]
            begin = self._begin.get(view.storage)
            offset = view.offset if begin is None else view.offset - begin + base.storage_offset()
            return base.as_strided(view.size, view.stride, offset)

        def value_of(x: torch.Tensor) -> torch.Tensor:
            return part(_View.of(x))

        for call in self._first:
            made = call.func(*_mapped(call.args, value_of), **_mapped(call.kwargs, value_of))
            for x, own in zip(_all(call.outputs), _all(made), strict=True):
                if isinstance(x, torch.Tensor):
                    bases.setdefault(_storage(x), own)
        fixed = [part(view) for view in self._fixed]

        @torch.no_grad()
        def carried_out(*inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
            return self._forward(*inputs, *fixed)

        return carried_out


def _wanted(calls: Sequence[_Call], places: Iterable[int]) -> list[_Call]:
    """The calls that what stands in these places hangs on."""
    live, kept = set(places), []
    for call in reversed(calls):
        if any(_storage(x) in live for x in (*call.made(), *call.written())):
            live |= {_storage(x) for x in call.inputs()}
            kept.append(call)
    return kept[::-1]


def _storage(x: torch.Tensor) -> int:
    return x.untyped_storage()._cdata


def _unusual(x: torch.Tensor) -> bool:
    """Whether memory, size and strides don't tell all of a tensor."""
    return x.layout != torch.strided or x.is_complex() or x.is_quantized or x.is_inference()


def _all(outputs: Any) -> Sequence[Any]:
    return [outputs] if isinstance(outputs, torch.Tensor) else outputs


def _tensors(value: Any) -> list[torch.Tensor]:
    """The tensors in nested lists, tuples and dictionaries."""
    if isinstance(value, torch.Tensor):
        return [value]
    if isinstance(value, dict):
        value = list(value.values())
    return [x for part in value for x in _tensors(part)] if isinstance(value, list | tuple) else []


def _mapped(value: Any, to: Callable[[torch.Tensor], Any]) -> Any:
    """`value` with something else in place of each tensor."""
    if isinstance(value, torch.Tensor):
        return to(value)
    if isinstance(value, dict):
        return {key: _mapped(part, to) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_mapped(part, to) for part in value)
    return value
