"""Optimisers by name."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable
from typing import Any

from torch import Tensor, nn, optim

from dassl.config import CfgNode
from dassl.utils import UserError, check_choice

from .eager import SGD, Adam, AdamW, RMSprop
from .radam import RAdam


def _adam(o: CfgNode) -> dict[str, Any]:
    return {"betas": (o.ADAM_BETA1, o.ADAM_BETA2), "eps": o.ADAM_EPS}


# name -> (class, its arguments from the OPTIM node)
_OPTIMIZERS: dict[str, tuple[type[optim.Optimizer], Callable[[CfgNode], dict[str, Any]]]] = {
    "sgd": (
        SGD,
        lambda o: {
            "momentum": o.MOMENTUM,
            "dampening": o.SGD_DAMPNING,
            "nesterov": o.SGD_NESTEROV,
        },
    ),
    "adam": (Adam, _adam),
    "amsgrad": (Adam, lambda o: {**_adam(o), "amsgrad": True}),
    "adamw": (AdamW, _adam),
    "radam": (RAdam, _adam),
    "rmsprop": (RMSprop, lambda o: {"momentum": o.MOMENTUM, "alpha": o.RMSPROP_ALPHA}),
}


def build_optimizer(
    model: nn.Module | Iterable[nn.Parameter] | None,
    optim_cfg: CfgNode,
    param_groups: list[dict[str, Any]] | None = None,
) -> optim.Optimizer:
    """Return the optimizer `optim_cfg.NAME`.

    Args:
        model: what to optimize, a module or its parameters.
        optim_cfg: the OPTIM node.
        param_groups: optimize these instead; a group may carry its own "lr".
    """
    check_choice("OPTIM.NAME", optim_cfg.NAME, _OPTIMIZERS)
    if param_groups is not None:
        if optim_cfg.STAGED_LR:
            warnings.warn("OPTIM.STAGED_LR has no effect on given param_groups", stacklevel=2)
        parameters: Any = param_groups
    elif optim_cfg.STAGED_LR:
        parameters = _staged(model, optim_cfg)
    else:
        parameters = model.parameters() if isinstance(model, nn.Module) else model
    make, arguments = _OPTIMIZERS[optim_cfg.NAME]
    rest = {
        "lr": optim_cfg.LR,
        "weight_decay": optim_cfg.WEIGHT_DECAY,
        **arguments(optim_cfg),
    }
    try:
        optimizer = make(parameters, **rest)
    except ValueError as error:  # such as a negative rate
        raise UserError(f"OPTIM: {error}") from None
    if _can_fuse(optimizer):
        groups = [{**group, "foreach": False, "fused": True} for group in optimizer.param_groups]
        optimizer = make(groups, fused=True, **rest)
    return optimizer


def load_optimizer(optimizer: optim.Optimizer, state: dict[str, Any]) -> None:
    """`optimizer.load_state_dict(state)`, from a machine with or without a GPU.

    Raises KeyError, TypeError or ValueError if the state is of another optimizer or other
    parameters, or damaged.
    """
    defaults = optimizer.defaults
    own = [{k: group.get(k) for k in ("foreach", "fused")} for group in optimizer.param_groups]
    optimizer.load_state_dict(state)
    for group, kept in zip(optimizer.param_groups, own, strict=True):
        group.update(kept)
        for name, value in group.items():
            default = defaults.get(name)
            if isinstance(default, (int, float)) and not isinstance(value, (int, float)):
                raise TypeError(f"the optimizer's {name} is {value!r}")
    for parameter, values in optimizer.state.items():
        for name, value in values.items():
            if isinstance(value, Tensor):
                if value.numel() != 1 and value.shape != parameter.shape:
                    raise ValueError(f"the optimizer's {name} has the shape {tuple(value.shape)}")
            elif not isinstance(value, (int, float, type(None))):
                raise TypeError(f"the optimizer's {name} is {value!r}")


def _can_fuse(optimizer: optim.Optimizer) -> bool:
    """On a GPU a step is one kernel then, and a gradient scaler doesn't wait for its verdict."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    on_gpu = all(p.device.type == "cuda" and p.is_floating_point() for p in parameters)
    return on_gpu and "fused" in optimizer.defaults


def _staged(model: nn.Module, optim_cfg: CfgNode) -> list[dict[str, Any]]:
    """Split the children: those in NEW_LAYERS at LR, the others at LR × BASE_LR_MULT."""
    if not isinstance(model, nn.Module):
        raise TypeError("OPTIM.STAGED_LR needs a module")
    model = model.module if isinstance(model, nn.DataParallel) else model
    new = optim_cfg.NEW_LAYERS
    new = [new] if isinstance(new, str) else list(new)
    children = dict(model.named_children())
    for name in new:
        check_choice("an entry of OPTIM.NEW_LAYERS", name, children)
    groups = [
        {"params": [], "lr": optim_cfg.LR * optim_cfg.BASE_LR_MULT},
        {"params": [], "lr": optim_cfg.LR},
    ]
    for name, child in children.items():
        groups[name in new]["params"] += list(child.parameters())
    return groups
