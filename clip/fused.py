"""Parts of a frozen transformer block with fewer passes over memory than autograd's own.

On a CPU the faster library computes their products. Only inputs get gradients here, never the
block's weights. What is saved is what the backward pass needs and nothing else. All can be mapped
over several runs (torch.func.vmap).

Letters in shape comments: K contexts, W tower width.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import torch
import torch.nn.functional as F
from torch import nn
from torch.autograd.function import once_differentiable

from .model import QuickGELU

# Products of at least so many multiplications are oneDNN's on a CPU: below, its call costs more
# than it saves. benchmarks/speed.py prints PyTorch's own time over oneDNN's around there.
_LARGE = 1 << 27


# --- Products with frozen weights -------------------------------------------------------------


def linear(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """`F.linear(x, weight, bias)`; a frozen layer's large products on a CPU go to oneDNN.

    PyTorch hands fp32 products to MKL, which was slower where it was measured (AMD EPYC).
    `torch.backends.mkldnn.flags(enabled=False)` leaves them there.
    """
    frozen = bias is None or not bias.requires_grad
    call = by_onednn if frozen and _onednn(x, weight) else F.linear
    return call(x, weight, bias)


def by_onednn(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """`F.linear(x, weight, bias)` in fp32 on a CPU, by oneDNN; only x gets a gradient."""
    return _Product.apply(x, weight, bias)


def _affine(
    bias: torch.Tensor, x: torch.Tensor, weight: torch.Tensor, beta: float, alpha: float
) -> torch.Tensor:
    """β bias + α x weightᵀ for a frozen layer. x (n,in), weight (out,in) → (n,out)."""
    if not _onednn(x, weight):
        return torch.addmm(bias, x, weight.t(), beta=beta, alpha=alpha)
    # oneDNN's operator takes no factors: they go to the narrower side.
    if x.shape[-1] < len(weight):
        return by_onednn(x * alpha, weight, bias * beta)
    return by_onednn(x, weight, bias * (beta / alpha)).mul_(alpha)


def _onednn(x: torch.Tensor, weight: torch.Tensor) -> bool:
    return (
        x.numel() * len(weight) >= _LARGE
        and x.device.type == "cpu"
        and x.dtype == weight.dtype == torch.float32
        and not weight.requires_grad
        and not torch.is_autocast_enabled("cpu")
        and bool(torch.backends.mkldnn.enabled)
        and has_onednn()
    )


@cache
def has_onednn() -> bool:
    """Whether this PyTorch has oneDNN beside MKL, and the operator for it."""
    # The operator that torch.compile puts in the place of a frozen linear layer.
    available = torch.backends.mkldnn.is_available() and torch.backends.mkl.is_available()
    return available and hasattr(torch.ops.mkldnn, "_linear_pointwise")


class _Product(torch.autograd.Function):
    """x weightᵀ + bias; only x gets a gradient."""

    @staticmethod
    def forward(x, weight, bias):
        return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(inputs[1])

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        (weight,) = ctx.saved_tensors
        return linear(grad, weight.t(), None), None, None

    @staticmethod
    def vmap(info, in_dims, x, weight, bias):
        if any(dim is not None for dim in in_dims[1:]):  # each run has weights of its own
            return torch.func.vmap(F.linear, in_dims)(x, weight, bias), 0
        return _Product.apply(x.movedim(in_dims[0], 0), weight, bias), 0


# --- The MLP ----------------------------------------------------------------------------------


def mlp(layers: nn.Sequential, x: torch.Tensor) -> torch.Tensor:
    """`layers(x)` for a block's c_fc, QuickGELU or exact GELU, c_proj. x: (…,W)."""
    fc, proj = layers.get_submodule("c_fc"), layers.get_submodule("c_proj")
    weights = (fc.weight, fc.bias, proj.weight, proj.bias)
    if any(w.requires_grad for w in weights) or torch.is_autocast_enabled(x.device.type):
        return layers(x)
    gelu = layers.get_submodule("gelu")
    quick = type(gelu) is QuickGELU
    if not quick and not (type(gelu) is nn.GELU and gelu.approximate == "none"):
        return layers(x)
    arguments = (x.flatten(0, -2), *weights, quick)
    if torch.is_grad_enabled():
        return _FrozenMLP.apply(*arguments)[0].view(x.shape)
    return _mlp(*arguments, inplace=True)[0].view(x.shape)


def _mlp(x, fc_weight, fc_bias, proj_weight, proj_bias, quick: bool, inplace: bool = False):
    """x: (n,W) → the output, and what GELU acts on, or QuickGELU times its β = 1.702.

    h σ(βh) is silu(βh) / β, one kernel; the factors are taken into the matrix products.
    """
    if not quick:
        hidden = linear(x, fc_weight, fc_bias)
        return linear(F.gelu(hidden), proj_weight, proj_bias), hidden
    beta = QuickGELU.beta
    hidden = _affine(fc_bias, x, fc_weight, beta=beta, alpha=beta)
    active = F.silu(hidden, inplace=inplace)
    return _affine(proj_bias, active, proj_weight, beta=1, alpha=1 / beta), hidden


class _FrozenMLP(torch.autograd.Function):
    """Keeps the hidden layer alone for its backward pass."""

    @staticmethod
    def forward(*arguments):
        return _mlp(*arguments)

    @staticmethod
    def setup_context(ctx, inputs, output):
        _, fc_weight, _, proj_weight, _, ctx.quick = inputs
        hidden = output[1]
        ctx.mark_non_differentiable(hidden)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(hidden, fc_weight, proj_weight)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad, _):
        hidden, fc_weight, proj_weight = ctx.saved_tensors
        # Of QuickGELU the factors β and 1/β cancel.
        through = torch.ops.aten.silu_backward if ctx.quick else torch.ops.aten.gelu_backward
        grad = through(linear(grad, proj_weight.t(), None), hidden)
        return linear(grad, fc_weight.t(), None), *(None,) * 5

    @staticmethod
    def vmap(info, in_dims, x, *weights):
        x = x.movedim(in_dims[0], 0)
        outputs = _FrozenMLP.apply(x.flatten(0, 1), *weights)
        return tuple(y.unflatten(0, x.shape[:2]) for y in outputs), (0, 0)


# --- Recomputation ------------------------------------------------------------------------------


def recomputed(
    call: Callable[..., tuple[torch.Tensor, ...]], *inputs: torch.Tensor
) -> tuple[torch.Tensor, ...]:
    """`call(*inputs)`, of which nothing is kept for the backward pass but the inputs.

    What `call` closes over gets no gradient. Random numbers are drawn again as they were.
    (PyTorch's own checkpointing can't be mapped over several runs.)
    """
    device = inputs[0].device
    settings = (
        (torch.is_autocast_enabled(device.type), torch.get_autocast_dtype(device.type)),
        [device] if device.type == "cuda" else [],
        torch.get_rng_state(),
        torch.cuda.get_rng_state(device) if device.type == "cuda" else None,
    )
    return _Recomputed.apply(call, settings, *inputs)


class _Recomputed(torch.autograd.Function):
    @staticmethod
    def forward(call, settings, *inputs):
        return call(*inputs)

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.call, ctx.settings, *rest = inputs
        ctx.save_for_backward(*rest)

    @staticmethod
    @once_differentiable
    def backward(ctx, *grads):
        needed = ctx.needs_input_grad[2:]
        inputs = [
            x.detach().requires_grad_(need)
            for x, need in zip(ctx.saved_tensors, needed, strict=True)
        ]
        (enabled, dtype), devices, state, device_state = ctx.settings
        with torch.random.fork_rng(devices), torch.enable_grad():
            torch.set_rng_state(state)
            if devices:
                torch.cuda.set_rng_state(device_state, devices[0])
            with torch.autocast(grads[0].device.type, dtype, enabled):
                outputs = ctx.call(*inputs)
        pairs = [(y, g) for y, g in zip(outputs, grads, strict=True) if y.requires_grad]
        outputs, grads = zip(*pairs, strict=True)
        leaves = [x for x in inputs if x.requires_grad]
        found = iter(torch.autograd.grad(outputs, leaves, grads, allow_unused=True))
        return None, None, *(next(found) if need else None for need in needed)

    @staticmethod
    def vmap(info, in_dims, call, settings, *inputs):
        mapped = torch.func.vmap(call, in_dims=tuple(in_dims[2:]), randomness=info.randomness)
        outputs = _Recomputed.apply(mapped, settings, *inputs)
        return outputs, (0,) * len(outputs)
