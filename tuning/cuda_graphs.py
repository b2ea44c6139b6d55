"""A training step's kernels recorded once and replayed: on a GPU most of a step is launching them.

A step of a few images on a few classes is some thousand small kernels. Recorded as a CUDA graph,
they start with one call. What is replayed is checked against the eager step before it is used;
where recording fails or differs, the steps go on eagerly.

PyTorch's `make_graphed_callables` can't serve: it records forward and backward as two graphs for
one set of shapes, joined by an eager autograd node that adds to `.grad`, and has no check before it
takes the callable's place. Here losses and the gradients they set are one graph, of which each set
of shapes has its own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch

from .held import Held

Inputs = dict[str, torch.Tensor]
Losses = dict[str, torch.Tensor]

# Of the largest entry: rounding, and sums in another order, but no wrong number.
_TOLERANCE = {torch.float16: 3e-2, torch.bfloat16: 1e-1}
# Inputs on the host, whose values say what a step does.
ON_HOST = ("dataset",)
_WARM_UP = 3  # eager calls before recording, as the libraries choose and allocate then


class GraphedStep:
    """`compute`, replayed where that is possible.

    Args:
        compute: takes inputs by name, leaves gradients in the parameters' `.grad` (set, not added
            to), returns losses by name. It must not look at values on the host.
        parameters: those that get gradients.
        held: gives what its method holds now: where that is another, it is recorded anew.
        record: turns a call into one that replays it.
    """

    def __init__(
        self,
        compute: Callable[[Inputs], Losses],
        parameters: Iterable[torch.Tensor],
        held: Callable[[], Held] | None = None,
        record: Callable[[Callable[[], Losses]], tuple[Callable[[], None], Losses]] | None = None,
    ) -> None:
        self.compute = compute
        self.parameters = list(parameters)
        self.record = record or _cuda_graph
        self.works = True
        self._now = held
        self._held: Held | None = None
        self._graphs: dict[tuple, tuple[Callable[[], None], Inputs, Losses, list]] = {}

    def __call__(self, inputs: Inputs) -> Losses:
        """The losses of one step; its gradients are in the parameters."""
        if not self.works:
            return self.compute(inputs)
        if self._now is not None and not (held := self._now()).same_as(self._held):
            self._held = held
            self._graphs.clear()
        key = (
            *((name, x.shape, x.dtype) for name, x in inputs.items()),
            *(int(x) for name, x in inputs.items() if name in ON_HOST),
            *(p.requires_grad for p in self.parameters),
        )
        if key not in self._graphs and not self._recorded(key, inputs):
            return self.compute(inputs)
        return self._replayed(key, inputs)

    def _replayed(self, key: tuple, inputs: Inputs) -> Losses:
        replay, fixed, losses, gradients = self._graphs[key]
        for name, x in inputs.items():
            if name not in ON_HOST:  # what was recorded is of this value
                fixed[name].copy_(x, non_blocking=True)
        replay()
        for parameter, gradient in zip(self.parameters, gradients, strict=True):
            parameter.grad = gradient  # another shape's graph has gradients of its own
        return {name: x.clone() for name, x in losses.items()}

    def _recorded(self, key: tuple, inputs: Inputs) -> bool:
        """Record the step for inputs like these; return whether its replay is right."""
        fixed = {name: x.detach().clone() for name, x in inputs.items()}
        try:
            expected = self._eager(fixed)
            replay, losses = self.record(lambda: self.compute(fixed))
            self._graphs[key] = (replay, fixed, losses, [p.grad for p in self.parameters])
            actual = self._state(self._replayed(key, inputs))
        except RuntimeError as error:
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        else:
            if len(actual) == len(expected) and all(map(_close, actual, expected)):
                return True
            reason = "its replay gave other numbers"
        self._graphs.clear()
        self.works = False
        for parameter in self.parameters:
            parameter.grad = None
        print(f"The step can't be replayed as a CUDA graph ({reason}): going on without")
        return False

    def _eager(self, inputs: Inputs) -> list[torch.Tensor]:
        return self._state(self.compute(inputs))

    def _state(self, losses: Losses) -> list[torch.Tensor]:
        """Losses and gradients, copied."""
        grads = [p.grad for p in self.parameters if p.grad is not None]
        return [x.detach().clone() for x in (*losses.values(), *grads)]


def _close(actual: torch.Tensor, expected: torch.Tensor) -> bool:
    bound = _TOLERANCE.get(expected.dtype, 1e-2) * expected.nan_to_num().abs().max()
    # NaN is as good as NaN: it isn't the replay that diverges.
    return torch.allclose(actual, expected, rtol=0, atol=float(bound), equal_nan=True)


def _cuda_graph(call: Callable[[], Losses]) -> tuple[Callable[[], None], Losses]:
    """Record `call` on its own stream, as the CUDA graph it launches."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(_WARM_UP):
            call()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    # Other threads pin memory for the loaders meanwhile: their calls must not spoil the recording.
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):
        losses = call()
    return graph.replay, losses
