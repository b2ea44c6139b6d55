from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from dassl.config import get_cfg_default
from dassl.optim import build_optimizer
from dassl.optim.radam import RAdam


@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_radam_takes_the_published_steps(weight_decay):
    """Algorithm 2 of arXiv 1908.03265, with a decoupled weight decay."""
    lr, beta1, beta2, eps = 0.1, 0.9, 0.99, 1e-8
    p = nn.Parameter(torch.tensor([1.0, -2.0], dtype=torch.float64))
    optimizer = RAdam([p], lr=lr, betas=(beta1, beta2), eps=eps, weight_decay=weight_decay)
    x, m, v = p.detach().clone(), torch.zeros(2), torch.zeros(2)
    rho_inf = 2 / (1 - beta2) - 1
    rectified = []
    for t in range(1, 13):
        g = torch.tensor([0.5 * t, -1.0], dtype=torch.float64)
        p.grad = g.clone()
        optimizer.step()
        m, v = beta1 * m + (1 - beta1) * g, beta2 * v + (1 - beta2) * g * g
        rho = rho_inf - 2 * t * beta2**t / (1 - beta2**t)
        step = m / (1 - beta1**t)
        rectified.append(rho > 5)
        if rectified[-1]:
            r = (rho - 4) * (rho - 2) * rho_inf / ((rho_inf - 4) * (rho_inf - 2) * rho)
            step = step * (r * (1 - beta2**t)) ** 0.5 / (v.sqrt() + eps)
        x = x * (1 - lr * weight_decay) - lr * step
        torch.testing.assert_close(p.detach(), x, rtol=1e-10, atol=1e-12)
    assert rectified[0] is False and rectified[-1] is True


def _train(dtype, steps=8, state=None, start=(1.0, -2.0), **options):
    p = nn.Parameter(torch.tensor(start, dtype=dtype))
    optimizer = RAdam([p], lr=0.01, betas=(0.9, 0.99), **options)
    if state is not None:
        optimizer.load_state_dict(copy.deepcopy(state))
    path = []
    for t in range(steps):
        p.grad = torch.tensor([1e-4 * (t + 1), -(2.0**-12)], dtype=torch.float16).to(dtype)
        optimizer.step()
        path.append(p.detach().clone())
    return path, optimizer


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_parameters_step_in_single_precision(dtype):
    """As Dassl's; the squares of such gradients are zero in fp16."""
    halves, optimizer = _train(dtype, steps=8)
    grads = [
        torch.tensor([1e-4 * (t + 1), -(2.0**-12)], dtype=torch.float16).to(dtype).float()
        for t in range(8)
    ]
    p = nn.Parameter(torch.tensor([1.0, -2.0]))
    wide = RAdam([p], lr=0.01, betas=(0.9, 0.99))
    for half, grad in zip(halves, grads, strict=True):
        p.grad = grad
        wide.step()
        p.data = p.data.to(dtype).float()  # it is rounded after every step
        assert half.dtype is dtype
        assert torch.equal(half.float(), p.detach())
    (state,) = optimizer.state.values()
    assert state["exp_avg_sq"].dtype is torch.float32


def test_gradients_of_halves_stay_as_they_were():
    p = nn.Parameter(torch.ones(2, dtype=torch.float16))
    p.grad = grad = torch.full_like(p, 0.5)
    data = p.data_ptr()
    RAdam([p], lr=0.01).step()
    assert p.grad is grad and p.grad.dtype is torch.float16 and p.data_ptr() == data


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_goes_on_from_its_state(dtype):
    whole, _ = _train(dtype, steps=8)
    first, optimizer = _train(dtype, steps=8)
    again = [_train(dtype, 5, optimizer.state_dict(), first[-1].tolist())[0] for _ in range(2)]
    p, more = first[-1].clone().requires_grad_(), optimizer
    (own,) = more.param_groups[0]["params"]
    for t in range(5):
        own.grad = torch.tensor([1e-4 * (t + 1), -(2.0**-12)], dtype=torch.float16).to(dtype)
        more.step()
    assert torch.equal(again[0][-1], own.detach()) and torch.equal(again[1][-1], own.detach())
    assert not torch.equal(own.detach(), p.detach())


def test_unrectified_steps_can_be_left_out():
    path, _ = _train(torch.float64, weight_decay=0.1, degenerated_to_sgd=False)
    still = [torch.equal(p, torch.tensor([1.0, -2.0], dtype=torch.float64)) for p in path]
    assert still == [True] * 5 + [False] * 3
    with_sgd, _ = _train(torch.float64, weight_decay=0.1)
    assert not torch.equal(with_sgd[0], path[0])


def test_closure():
    p = nn.Parameter(torch.ones(2))
    optimizer = RAdam([p], lr=0.1)

    def closure():
        optimizer.zero_grad()
        loss = p.sum()
        loss.backward()
        return loss

    assert optimizer.step(closure) == 2
    torch.testing.assert_close(p.detach(), torch.full((2,), 0.9))


def test_the_option_takes_it():
    node = get_cfg_default().OPTIM
    node.NAME = "radam"
    model = nn.Linear(2, 2).half()
    optimizer = build_optimizer(model, node)
    for p in model.parameters():
        p.grad = torch.full_like(p, 1e-5)
    for _ in range(10):
        optimizer.step()
    assert type(optimizer) is RAdam
    assert all(p.isfinite().all() for p in model.parameters())
