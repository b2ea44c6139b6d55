"""Learning rate per epoch and parameter group, in closed form.

With base rate η of a group, W warm-up epochs and E = MAX_EPOCH, epoch e (from 0) has

    e < W, constant    WARMUP_CONS_LR, in every group
    e < W, linear      WARMUP_MIN_LR if e = 0, else η e / W
    e ≥ W, recount     η f(e − W)
    e ≥ W, no recount  η f(e) / f(W)

where f is   cosine       (1 + cos(π e / E)) / 2
             single_step  γ^⌊e / STEPSIZE⌋
             multi_step   γ^(milestones ≤ e)

These are the rates of Dassl's chained schedulers. The cosine spans E epochs from the end of the
warm-up on, so with a recount it does not reach zero.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from dassl.compat.lr_scheduler import ConstantWarmupScheduler, LinearWarmupScheduler
from dassl.config import CfgNode
from dassl.utils import UserError, check_choice

__all__ = [
    "ConstantWarmupScheduler",
    "EpochScheduler",
    "LinearWarmupScheduler",
    "build_lr_scheduler",
]

Rate = Callable[[float, int], float]  # (base rate, epoch) -> rate


class EpochScheduler(LRScheduler):
    """Sets each group to `rate(base rate, epoch)`; `step()` goes to the next epoch."""

    def __init__(self, optimizer: Optimizer, rate: Rate) -> None:
        self._rate = rate
        super().__init__(optimizer)

    def get_lr(self) -> list[float]:
        """Return the rate of each group in the current epoch."""
        return [self._rate(base, self.last_epoch) for base in self.base_lrs]

    def state_dict(self) -> dict[str, Any]:
        """Return what resuming needs: plain values."""
        return {
            "last_epoch": self.last_epoch,
            "base_lrs": list(self.base_lrs),
            "_step_count": self._step_count,
            "_last_lr": [float(lr) for lr in self._last_lr],
        }


def build_lr_scheduler(optimizer: Optimizer, optim_cfg: CfgNode) -> EpochScheduler:
    """Return the schedule of the OPTIM node, to be stepped after each epoch."""
    decay = _decay(optim_cfg)
    warmup = optim_cfg.WARMUP_EPOCH
    if warmup <= 0:
        return EpochScheduler(optimizer, lambda base, epoch: base * decay(epoch))
    start = _warmup(optim_cfg)

    def rate(base: float, epoch: int) -> float:
        if epoch < warmup:
            return start(base, epoch)
        if optim_cfg.WARMUP_RECOUNT:
            return base * decay(epoch - warmup)
        return base * (decay(epoch) / decay(warmup))

    return EpochScheduler(optimizer, rate)


def _decay(optim_cfg: CfgNode) -> Callable[[int], float]:
    """Return f: epoch -> share of the base rate."""
    name, gamma, max_epoch = optim_cfg.LR_SCHEDULER, optim_cfg.GAMMA, optim_cfg.MAX_EPOCH
    steps = optim_cfg.STEPSIZE
    steps = list(steps) if isinstance(steps, (list, tuple)) else [steps]
    check_choice("OPTIM.LR_SCHEDULER", name, ("single_step", "multi_step", "cosine"))
    if max_epoch < 1:
        raise UserError(f"OPTIM.MAX_EPOCH is {max_epoch}; there must be an epoch")
    if name == "cosine":
        return lambda epoch: (1 + math.cos(math.pi * epoch / max_epoch)) / 2
    if not steps or not all(isinstance(step, int) for step in steps):
        raise UserError(f"OPTIM.STEPSIZE must hold whole numbers of epochs, not {steps}")
    if name == "multi_step":
        return lambda epoch: gamma ** sum(step <= epoch for step in steps)
    size = steps[-1] if steps[-1] > 0 else max_epoch
    return lambda epoch: gamma ** (epoch // size)


def _warmup(optim_cfg: CfgNode) -> Rate:
    kind, warmup = optim_cfg.WARMUP_TYPE, optim_cfg.WARMUP_EPOCH
    check_choice("OPTIM.WARMUP_TYPE", kind, ("constant", "linear"))
    if kind == "constant":
        return lambda base, epoch: optim_cfg.WARMUP_CONS_LR
    return lambda base, epoch: base * epoch / warmup if epoch else optim_cfg.WARMUP_MIN_LR


def load_scheduler(scheduler: Any, state: dict[str, Any]) -> None:
    """`scheduler.load_state_dict(state)`, which makes every entry an attribute, whatever it is.

    Raises TypeError for entries of another kind than its own.
    """
    own = scheduler.state_dict()
    for name, value in state.items():
        there = own.get(name)
        if isinstance(there, (int, float)):
            fits = isinstance(value, (int, float))
        elif isinstance(there, list):
            fits = isinstance(value, list) and len(value) == len(there)
            fits = fits and all(isinstance(item, (int, float)) for item in value)
        else:
            fits = not callable(getattr(scheduler, str(name), None))
        if not fits:
            raise TypeError(f"the schedule's {name} is {value!r}")
    scheduler.load_state_dict(state)
