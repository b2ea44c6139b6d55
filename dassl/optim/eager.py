"""PyTorch's optimizers without what they load for torch.compile, which takes over a second."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import optim


class Eager(optim.Optimizer):
    """Beside an optimizer of PyTorch's: its functions, bare of what marks them for a compiler.

    Its numbers, state and hooks are the optimizer's own. A compiled step wants the original.
    """

    add_param_group = inspect.unwrap(optim.Optimizer.add_param_group)
    load_state_dict = inspect.unwrap(optim.Optimizer.load_state_dict)
    state_dict = inspect.unwrap(optim.Optimizer.state_dict)
    zero_grad = inspect.unwrap(optim.Optimizer.zero_grad)

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        bare = inspect.unwrap(super().step)

        def step(self: optim.Optimizer, closure: Callable[[], Any] | None = None) -> Any:
            """As PyTorch's."""
            with torch.set_grad_enabled(self.defaults.get("differentiable", False)):
                return bare(self, closure)

        cls.step = step  # type: ignore[method-assign]


class SGD(Eager, optim.SGD):
    """torch.optim.SGD."""


class Adam(Eager, optim.Adam):
    """torch.optim.Adam."""


class AdamW(Eager, optim.AdamW):
    """torch.optim.AdamW."""


class RMSprop(Eager, optim.RMSprop):
    """torch.optim.RMSprop."""
