"""The one training step: of a trainer, of several seeds at once, of the benchmark.

Losses under autocast, their sum, its scaled gradient in place of the last, the optimizers' step.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import reduce

import torch
from torch import nn

from .method import Method

Batch = dict[str, torch.Tensor]  # image, label, and what else the method's `features` takes
Losses = dict[str, torch.Tensor]
Compute = Callable[[Batch], Losses]


class BatchLosses(nn.Module):
    """A method's losses of a batch, as a module's forward."""

    def __init__(
        self, method: Method, autocast: Callable[[], AbstractContextManager] = nullcontext
    ) -> None:
        super().__init__()
        self.method = method
        self.autocast = autocast

    def forward(self, image: torch.Tensor, label: torch.Tensor, **known: torch.Tensor) -> Losses:
        """Image (B,…), label (B,) → each loss ()."""
        with self.autocast():
            features = self.method.features(image, **known)
        return self.method.losses(features, label)


class TrainingStep:
    """One step on a batch; gives {"loss": total, "loss_<name>": part, …}, detached.

    Args:
        losses_of: takes a batch by name and gives losses by name: each (), of R runs at once (R,).
        zero_grad: clears the gradients of what is trained.
        scale: makes of the total loss what is differentiated, ().
        update: has the optimizers make their step.
        again: makes of what computes losses and gradients what does so from a record.
    """

    def __init__(
        self,
        losses_of: Callable[..., Losses],
        zero_grad: Callable[[], None],
        scale: Callable[[torch.Tensor], torch.Tensor],
        update: Callable[[], None],
        again: Callable[[Compute], Compute] | None = None,
    ) -> None:
        self.losses_of = losses_of
        self.zero_grad = zero_grad
        self.scale = scale
        self.update = update
        self.gradients: Compute = self.compute_gradients
        if again is not None:
            self.gradients = again(self.compute_gradients)

    def __call__(self, batch: Batch) -> Losses:
        """The losses of the step, made on the way."""
        losses = self.gradients(batch)
        self.update()
        return losses

    def compute_gradients(self, batch: Batch) -> Losses:
        """The losses of a batch; their gradients replace those in the parameters."""
        losses = self.losses_of(**batch)
        total = reduce(torch.add, losses.values())
        self.zero_grad()
        self.scale(total).backward()
        return {"loss": total.detach(), **{f"loss_{k}": v.detach() for k, v in losses.items()}}


@dataclass
class OwnStep:
    """What a method's own step works with: `Method.own_step`.

    losses_of: takes a batch by name and gives the method's losses by name, under autocast. DePT's
        are among them where it is around the method.
    optimizers: by the names they are registered under; the method's usual one comes first.
    scaler: scales what is differentiated.
    """

    losses_of: BatchLosses
    optimizers: dict[str, torch.optim.Optimizer]
    scaler: torch.amp.GradScaler
    update_of: Callable[[list[str] | None], None]
    epoch: int = 0  # from 0
    epochs: int = 0

    def losses(self, batch: Batch) -> Losses:
        """The losses of a batch, each (), with their graph."""
        return self.losses_of(**batch)

    def zero_grad(self) -> None:
        """Clear the gradients of what any of the optimizers trains."""
        for optimizer in self.optimizers.values():
            optimizer.zero_grad()

    def backward(self, total: torch.Tensor) -> None:
        """Add the scaled gradient of a loss () to the parameters' gradients."""
        self.scaler.scale(total).backward()

    def gradient(
        self, loss: torch.Tensor, leaves: Sequence[torch.Tensor], twice: bool = False
    ) -> list[torch.Tensor]:
        """∇loss through the scaled loss (), unscaled; zeros for what it doesn't depend on.

        The graph is kept. twice: the gradients have one themselves.
        """
        scale = self.scaler.scale(torch.ones((), device=loss.device))
        found = torch.autograd.grad(
            loss * scale, leaves, retain_graph=True, create_graph=twice, allow_unused=True
        )
        return [
            torch.zeros_like(x) if g is None else g / scale
            for x, g in zip(leaves, found, strict=True)
        ]

    def step_along(
        self, parameters: Sequence[torch.Tensor], gradients: Sequence[torch.Tensor]
    ) -> None:
        """Have the optimizers make a step with these gradients alone, unscaled."""
        self.zero_grad()
        for p, gradient in zip(parameters, gradients, strict=True):
            p.grad = self.scaler.scale(gradient.detach()).to(p.dtype)
        self.update()

    def update(self, *names: str) -> None:
        """Have the optimizers of these names make their step; by default all."""
        self.update_of(list(names) or None)


def logged(losses: Losses) -> Losses:
    """Losses by name as a step reports them: with their sum, detached."""
    total = reduce(torch.add, losses.values())
    return {"loss": total.detach(), **{f"loss_{k}": v.detach() for k, v in losses.items()}}


def training_step(
    method: Method,
    batch: Batch,
    optimizer: torch.optim.Optimizer,
    scaler: torch.amp.GradScaler,
    autocast: Callable[[], AbstractContextManager] = nullcontext,
) -> Losses:
    """Make one step of `method`, which stands in training mode; → its losses, see `TrainingStep`.

    batch: image (B,3,I,I), label (B,), and what else `method.features` takes.
    """
    step = TrainingStep(
        BatchLosses(method, autocast),
        optimizer.zero_grad,
        scaler.scale,
        lambda: scaled_update([optimizer], scaler),
    )
    return step(batch)


def scaled_update(
    optimizers: Sequence[torch.optim.Optimizer], scaler: torch.amp.GradScaler
) -> None:
    """Have optimizers make their step; one whose scaled gradients overflowed leaves it out.

    So does one whose parameters all rest, without a gradient: a scaler can't step it.
    """
    moving = [o for o in optimizers if _has_gradients(o)]
    for optimizer in moving:
        scaler.step(optimizer)
    if moving:
        scaler.update()


def clip_gradients(
    optimizers: Iterable[torch.optim.Optimizer | None],
    scaler: torch.amp.GradScaler,
    parameters: Iterable[torch.Tensor],
    norm: float,
) -> None:
    """Scale gradients down to `norm` at most, over all parameters together; 0: leave them."""
    if not norm:
        return
    for optimizer in optimizers:
        if optimizer is not None:
            scaler.unscale_(optimizer)
    nn.utils.clip_grad_norm_(parameters, norm)


def _has_gradients(optimizer: torch.optim.Optimizer) -> bool:
    return any(p.grad is not None for group in optimizer.param_groups for p in group["params"])
