"""Dassl's `dassl.optim.radam`."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch

__all__ = ["RAdam"]


class RAdam(torch.optim.RAdam):
    """Rectified Adam (Liu et al., ICLR 2020, arXiv 1908.03265), its weight decay decoupled.

    While the variance of the adaptive rate can't be rectified, a step is one of SGD with momentum.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(params, lr, betas, eps, weight_decay, decoupled_weight_decay=True)
