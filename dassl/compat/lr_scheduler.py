"""Dassl's warm-up schedulers, which wrap another scheduler; ours are in closed form."""

from __future__ import annotations

from typing import Any

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

__all__ = ["ConstantWarmupScheduler", "LinearWarmupScheduler"]


class WarmupScheduler(LRScheduler):
    """The rates of `warm` for `warmup_epoch` epochs, then those of `successor` from where it is.

    `verbose` is Dassl's and does nothing: PyTorch's schedulers print no more.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        successor: LRScheduler,
        warmup_epoch: int,
        last_epoch: int = -1,
        verbose: bool = False,
    ) -> None:
        self.successor = successor
        self.warmup_epoch = warmup_epoch
        super().__init__(optimizer, last_epoch)

    def warm(self, base: float) -> float:
        """Return the rate of a group with the rate `base` in epoch `last_epoch` of the warm-up."""
        raise NotImplementedError

    @property
    def _is_warm(self) -> bool:
        return self.last_epoch >= self.warmup_epoch

    def get_lr(self) -> list[float]:
        """Return the rate of each group in the current epoch."""
        if self._is_warm:
            return list(self.successor.get_last_lr())
        return [self.warm(base) for base in self.base_lrs]

    def step(self, epoch: int | None = None) -> None:
        """Go to the next epoch."""
        if not self._is_warm:
            return super().step(epoch)
        self.successor.step(epoch)
        self._last_lr = list(self.successor.get_last_lr())

    def state_dict(self) -> dict[str, Any]:
        """Return what resuming needs: plain values, the successor's too."""
        names = ("last_epoch", "base_lrs", "_step_count", "_last_lr")
        own = {name: vars(self)[name] for name in names}
        return {**own, "successor": self.successor.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take `state_dict` back."""
        own = dict(state_dict)
        self.successor.load_state_dict(own.pop("successor"))
        vars(self).update(own)


class ConstantWarmupScheduler(WarmupScheduler):
    """Warms up at `cons_lr` in every group."""

    def __init__(
        self,
        optimizer: Optimizer,
        successor: LRScheduler,
        warmup_epoch: int,
        cons_lr: float,
        last_epoch: int = -1,
        verbose: bool = False,
    ) -> None:
        self.cons_lr = cons_lr
        super().__init__(optimizer, successor, warmup_epoch, last_epoch, verbose)

    def warm(self, base: float) -> float:
        """Return `cons_lr`."""
        return self.cons_lr


class LinearWarmupScheduler(WarmupScheduler):
    """Warms up at `min_lr` in epoch 0, then at base · epoch / warmup_epoch."""

    def __init__(
        self,
        optimizer: Optimizer,
        successor: LRScheduler,
        warmup_epoch: int,
        min_lr: float,
        last_epoch: int = -1,
        verbose: bool = False,
    ) -> None:
        self.min_lr = min_lr
        super().__init__(optimizer, successor, warmup_epoch, last_epoch, verbose)

    def warm(self, base: float) -> float:
        """Return the rate on the line, which starts at `min_lr` instead of 0."""
        return base * self.last_epoch / self.warmup_epoch if self.last_epoch else self.min_lr
