"""A step that the fork of Dassl under ProGrad and KgCoOp has."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from dassl.engine.base import Names, TrainerBase

__all__ = ["prograd_backward_and_update"]


def prograd_backward_and_update(
    self: TrainerBase,
    loss_a: torch.Tensor,
    loss_b: torch.Tensor,
    lambda_: float = 1.0,
    names: Names = None,
) -> None:
    """Step down `loss_a`, without what would raise `loss_b` (Zhu et al., ICCV 2023, 2205.14865).

    With g = ∇loss_a and h = ∇loss_b of a parameter tensor, its gradient is
    g − λ (g·h / h·h) h where g·h < 0, else g.
    """
    for loss in (loss_a, loss_b):
        self.detect_anomaly(loss)
    names = self.get_model_names(names)
    parameters = [p for name in names for p in self._models[name].parameters() if p.requires_grad]
    of_b = torch.autograd.grad(loss_b, parameters, retain_graph=True, allow_unused=True)
    self.model_zero_grad(names)
    loss_a.backward()
    for parameter, h in zip(parameters, of_b, strict=True):
        g = parameter.grad
        if g is not None and h is not None and (against := torch.sum(g * h)) < 0:
            g.sub_(lambda_ * against / torch.sum(h * h) * h)
    self.model_update(names)
