"""Dassl's RAdam."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn

__all__ = ["RAdam"]

_MOMENTS = ("exp_avg", "exp_avg_sq")


class RAdam(torch.optim.RAdam):
    """Rectified Adam (Liu et al., ICLR 2020, arXiv 1908.03265), its weight decay decoupled.

    While the variance of the adaptive rate can't be rectified, a step is one of SGD with momentum,
    or none if not `degenerated_to_sgd`. Halves step in fp32 and are rounded then.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        degenerated_to_sgd: bool = True,
    ) -> None:
        super().__init__(params, lr, betas, eps, weight_decay, decoupled_weight_decay=True)
        self.degenerated_to_sgd = degenerated_to_sgd

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Take a step; return the loss of `closure`, if there is one."""
        loss = None if closure is None else closure()
        pairs = [(p, g["betas"][1]) for g in self.param_groups for p in g["params"]]
        pairs = [(p, beta2) for p, beta2 in pairs if p.grad is not None]
        halves = [(p, p.data, p.grad) for p, _ in pairs if p.dtype in (torch.half, torch.bfloat16)]
        still = []
        if not self.degenerated_to_sgd:
            still = [(p, p.data.clone()) for p, beta2 in pairs if not self._rectified(p, beta2)]
        for p, data, grad in halves:
            p.grad = None  # a gradient has its parameter's precision, always
            p.data, p.grad = data.float(), grad.float()
        try:
            super().step()
        finally:
            for p, data, grad in halves:
                data.copy_(p.data)
                p.grad = None
                p.data, p.grad = data, grad
        for p, data in still:
            p.data.copy_(data)
        return loss

    def _rectified(self, p: nn.Parameter, beta2: float) -> bool:
        """Whether the length of the average in the next step, ρ in the paper, is above 5."""
        t = int(self.state[p].get("step", 0)) + 1
        return 2 / (1 - beta2) - 1 - 2 * t * beta2**t / (1 - beta2**t) > 5

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take `state_dict` back, without rounding the moments to the parameters' precision."""
        super().load_state_dict(state_dict)
        own = [p for group in self.param_groups for p in group["params"]]
        indices = [index for group in state_dict["param_groups"] for index in group["params"]]
        for p, index in zip(own, indices, strict=True):
            for name in _MOMENTS if p.dtype in (torch.half, torch.bfloat16) else ():
                if name in (saved := state_dict["state"].get(index, {})):
                    self.state[p][name] = saved[name].to(p.device, torch.float32, copy=True)
