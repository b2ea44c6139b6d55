from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from dassl.config import get_cfg_default
from dassl.optim import build_optimizer, eager, load_optimizer, optimizer
from dassl.optim.radam import RAdam
from dassl.utils import UserError


def node(**options):
    node = get_cfg_default().OPTIM
    for name, value in options.items():
        node[name] = value
    return node


@pytest.mark.parametrize(
    ("name", "kind", "defaults"),
    [
        ("sgd", eager.SGD, {"momentum": 0.5, "dampening": 0.0, "nesterov": True}),
        ("adam", eager.Adam, {"betas": (0.8, 0.999), "eps": 0.2, "amsgrad": False}),
        ("amsgrad", eager.Adam, {"betas": (0.8, 0.999), "eps": 0.2, "amsgrad": True}),
        ("adamw", eager.AdamW, {"betas": (0.8, 0.999), "eps": 0.2}),
        ("radam", RAdam, {"betas": (0.8, 0.999), "eps": 0.2, "decoupled_weight_decay": True}),
        ("rmsprop", eager.RMSprop, {"momentum": 0.5, "alpha": 0.9}),
    ],
)
def test_options_arrive(name, kind, defaults):
    options = node(
        NAME=name, LR=0.3, WEIGHT_DECAY=0.1, MOMENTUM=0.5, SGD_NESTEROV=True, ADAM_BETA1=0.8,
        ADAM_EPS=0.2, RMSPROP_ALPHA=0.9,
    )  # fmt: skip
    model = nn.Linear(2, 2)
    for source in (model, model.parameters()):
        optimizer = build_optimizer(source, options)
        assert type(optimizer) is kind
        expected = {"lr": 0.3, "weight_decay": 0.1, **defaults}
        assert {key: optimizer.defaults[key] for key in expected} == expected
        before = model.weight.detach().clone()
        model(torch.ones(1, 2)).sum().backward()
        optimizer.step()
        assert not torch.equal(before, model.weight)


@pytest.mark.parametrize("name", ["SGD", "Adam", "AdamW", "RMSprop"])
def test_eager_optimizers_are_pytorchs(name):
    """Steps, what a hook sees, and the state, which either takes from the other."""
    found = []
    for kind in (getattr(eager, name), getattr(torch.optim, name)):
        torch.manual_seed(0)
        model, seen = nn.Linear(3, 2), []
        optimizer = kind([{"params": [model.weight]}], lr=0.1, weight_decay=0.01)
        optimizer.add_param_group({"params": [model.bias], "lr": 0.2})
        optimizer.register_step_post_hook(lambda *_, seen=seen: seen.append(1))
        schedule = torch.optim.lr_scheduler.StepLR(optimizer, 2)

        def closure(model=model, optimizer=optimizer):
            optimizer.zero_grad()
            loss = model(torch.ones(4, 3)).square().sum()
            loss.backward()
            return loss

        losses = []
        for _ in range(3):
            losses.append(optimizer.step(closure).item())
            schedule.step()
        state = copy.deepcopy(optimizer.state_dict())
        optimizer.load_state_dict(state)
        losses.append(optimizer.step(closure).item())
        assert len(seen) == 4 and torch.is_grad_enabled()
        found.append((losses, model.weight, model.bias, state, optimizer))
    (losses, *parameters, state, ours), (wanted, *theirs, their_state, public) = found
    assert losses == wanted and len(set(losses)) == 4
    assert all(torch.equal(a, b) for a, b in zip(parameters, theirs, strict=True))
    assert state["param_groups"] == their_state["param_groups"]
    public.load_state_dict(state)
    ours.load_state_dict(their_state)
    assert isinstance(ours, type(public))


def test_groups_keep_their_own_rate():
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    groups = [{"params": model[0].parameters()}, {"params": model[1].parameters(), "lr": 0.7}]
    optimizer = build_optimizer(None, node(LR=0.1), groups)
    assert [group["lr"] for group in optimizer.param_groups] == [0.1, 0.7]
    with pytest.warns(UserWarning, match="STAGED_LR has no effect"):
        build_optimizer(None, node(STAGED_LR=True), [{"params": [torch.zeros(1)]}])


def test_staged_rates():
    model = nn.ModuleDict({"old": nn.Linear(2, 2), "new": nn.Linear(2, 3)})
    staged = node(LR=0.1, STAGED_LR=True, NEW_LAYERS=("new",), BASE_LR_MULT=0.5)
    optimizer = build_optimizer(model, staged)
    rate = {id(p): g["lr"] for g in optimizer.param_groups for p in g["params"]}
    assert [rate[id(p)] for p in model.parameters()] == [0.05, 0.05, 0.1, 0.1]
    with pytest.raises(UserError, match=r"OPTIM.NEW_LAYERS is 'neu' \(did you mean 'new'"):
        build_optimizer(model, node(STAGED_LR=True, NEW_LAYERS=("neu",)))


def test_mistakes():
    with pytest.raises(UserError, match=r"OPTIM.NAME is 'adm' \(did you mean 'adam'"):
        build_optimizer(nn.Linear(1, 1), node(NAME="adm"))
    with pytest.raises(UserError, match="OPTIM: Invalid learning rate: -1"):
        build_optimizer(nn.Linear(1, 1), node(LR=-1.0))


@pytest.mark.parametrize("name", ["sgd", "adam", "amsgrad", "adamw", "radam", "rmsprop"])
def test_fused_steps_are_the_same(name, monkeypatch):
    """As on a GPU; the fused kernels exist on CPUs too. States move between both kinds."""
    offered = {"sgd", "adam", "amsgrad", "adamw"}

    def train(fused, state=None):
        monkeypatch.setattr(optimizer, "_can_fuse", lambda made: fused and "fused" in made.defaults)
        torch.manual_seed(0)
        parameters = [nn.Parameter(torch.randn(3)), nn.Parameter(torch.randn(2))]
        groups = [{"params": parameters[:1], "lr": 0.5}, {"params": iter(parameters[1:])}]
        made = build_optimizer(None, node(NAME=name, LR=0.1), groups)
        assert [group["lr"] for group in made.param_groups] == [0.5, 0.1]
        if state is not None:
            load_optimizer(made, copy.deepcopy(state))
        kinds = [bool(group.get("fused")) for group in made.param_groups]
        assert kinds == [fused and name in offered] * 2
        for _ in range(3):
            made.zero_grad()
            sum(p.pow(2).sum() for p in parameters).backward()
            made.step()
        return torch.cat([p.detach() for p in parameters]), made.state_dict()

    plain, plain_state = train(False)
    fused, fused_state = train(True)
    torch.testing.assert_close(fused, plain)
    for state in (plain_state, fused_state):
        torch.testing.assert_close(train(True, state)[0], train(False, state)[0])
