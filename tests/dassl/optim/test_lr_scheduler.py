"""The rates of each epoch, against values worked out by hand and against torch's chained ones."""

from __future__ import annotations

import warnings
from math import cos, pi

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.optim import lr_scheduler as chained

from dassl.config import get_cfg_default
from dassl.optim import build_lr_scheduler
from dassl.utils import UserError

BASE = 0.2
SECOND = 1.3  # base rate of another group


def rates(epochs: int, **options) -> list[list[float]]:
    """The rates of the two groups in each epoch."""
    node = get_cfg_default().OPTIM
    for name, value in options.items():
        node[name] = value
    parameters = [torch.zeros(1, requires_grad=True) for _ in range(2)]
    groups = [{"params": parameters[:1]}, {"params": parameters[1:], "lr": SECOND}]
    optimizer = torch.optim.SGD(groups, lr=BASE)
    scheduler = build_lr_scheduler(optimizer, node)
    found = []
    for _ in range(epochs):
        found.append([group["lr"] for group in optimizer.param_groups])
        optimizer.step()
        scheduler.step()
    return found


def first(*args, **options) -> list[float]:
    return [rate[0] for rate in rates(*args, **options)]


def test_cosine():
    # (1 + cos(π e / 4)) / 2 at e = 0, 1, 2, 3
    shares = [1, (1 + 0.5**0.5) / 2, 0.5, (1 - 0.5**0.5) / 2]
    found = rates(4, LR_SCHEDULER="cosine", MAX_EPOCH=4)
    assert found == [pytest.approx([share * BASE, share * SECOND]) for share in shares]


def test_constant_warmup_sets_every_group_and_the_cosine_follows():
    found = rates(4, LR_SCHEDULER="cosine", MAX_EPOCH=4, WARMUP_EPOCH=1, WARMUP_TYPE="constant")
    shares = [1, (1 + 0.5**0.5) / 2, 0.5]
    assert found[0] == [1e-5, 1e-5]
    assert found[1:] == [pytest.approx([share * BASE, share * SECOND]) for share in shares]


def test_the_schedule_of_the_published_runs():
    """SGD, 10 epochs, one constant warm-up epoch: it ends at (1 + cos(0.8 π)) / 2 of the rate."""
    found = first(10, LR_SCHEDULER="cosine", MAX_EPOCH=10, WARMUP_EPOCH=1, WARMUP_TYPE="constant")
    assert found[0] == 1e-5 and found[1] == BASE
    assert found[6] == pytest.approx(0.5 * BASE)
    assert (
        found[9] == pytest.approx(BASE * (1 + cos(0.8 * pi)) / 2) == pytest.approx(0.0954915 * BASE)
    )


def test_linear_warmup():
    found = first(6, LR_SCHEDULER="single_step", WARMUP_EPOCH=4, WARMUP_TYPE="linear")
    assert found == pytest.approx([1e-5, BASE / 4, BASE / 2, BASE * 3 / 4, BASE, BASE])


def test_single_step():
    found = first(5, LR_SCHEDULER="single_step", STEPSIZE=(7, 2), GAMMA=0.1)
    assert found == pytest.approx([BASE, BASE, 0.1 * BASE, 0.1 * BASE, 0.01 * BASE])
    assert first(4, LR_SCHEDULER="single_step", STEPSIZE=(-1,), MAX_EPOCH=3)[2:] == pytest.approx(
        [BASE, 0.1 * BASE]
    )


def test_multi_step_with_warmup_that_counts():
    options = {"LR_SCHEDULER": "multi_step", "STEPSIZE": (1, 3, 4), "GAMMA": 0.5}
    assert first(5, **options) == pytest.approx([BASE, BASE / 2, BASE / 2, BASE / 4, BASE / 8])
    warm = {"WARMUP_EPOCH": 2, "WARMUP_TYPE": "constant", "WARMUP_CONS_LR": 0.01}
    recount = first(7, **options, **warm)
    assert recount == pytest.approx([0.01, 0.01, BASE, BASE / 2, BASE / 2, BASE / 4, BASE / 8])
    # Without a recount the milestone at 1 is over when the warm-up ends.
    going_on = first(5, **options, **warm, WARMUP_RECOUNT=False)
    assert going_on == pytest.approx([0.01, 0.01, BASE, BASE / 2, BASE / 4])


@given(
    kind=st.sampled_from(["cosine", "single_step", "multi_step"]),
    warmup=st.integers(0, 4),
    warmup_type=st.sampled_from(["constant", "linear"]),
    recount=st.booleans(),
    max_epoch=st.integers(6, 12),
    steps=st.lists(st.integers(1, 8), min_size=1, max_size=3),
)
def test_same_rates_as_chained_schedulers(kind, warmup, warmup_type, recount, max_epoch, steps):
    """Once the warm-up is over, one of torch's schedulers is stepped from the base rate on."""
    found = first(
        max_epoch,
        LR_SCHEDULER=kind,
        MAX_EPOCH=max_epoch,
        STEPSIZE=tuple(steps),
        WARMUP_EPOCH=warmup,
        WARMUP_TYPE=warmup_type,
        WARMUP_RECOUNT=recount,
    )
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=BASE)
    scheduler = {
        "cosine": lambda: chained.CosineAnnealingLR(optimizer, float(max_epoch)),
        "single_step": lambda: chained.StepLR(optimizer, steps[-1], 0.1),
        "multi_step": lambda: chained.MultiStepLR(optimizer, steps, 0.1),
    }[kind]()
    if warmup and not recount:
        scheduler.last_epoch = warmup
    expected = [
        1e-5 if e == 0 or warmup_type == "constant" else BASE * e / warmup for e in range(warmup)
    ]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # there are no optimizer steps in between
        while len(expected) < max_epoch:
            expected.append(optimizer.param_groups[0]["lr"])
            scheduler.step()
    assert found == pytest.approx(expected, rel=1e-9, abs=1e-15)


def test_state_is_plain_and_goes_on():
    node = get_cfg_default().OPTIM
    node.LR_SCHEDULER = "cosine"

    def make():
        optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=BASE)
        return optimizer, build_lr_scheduler(optimizer, node)

    (one, first_half), (two, second_half) = make(), make()
    for _ in range(3):
        one.step()
        first_half.step()
    two.load_state_dict(one.state_dict())
    second_half.load_state_dict(first_half.state_dict())
    assert all(isinstance(value, (int, float, list)) for value in first_half.state_dict().values())
    for optimizer, scheduler in ((one, first_half), (two, second_half)):
        optimizer.step()
        scheduler.step()
    assert one.param_groups[0]["lr"] == two.param_groups[0]["lr"] == first_half.get_last_lr()[0]


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"LR_SCHEDULER": "cosin"}, r"LR_SCHEDULER is 'cosin' \(did you mean 'cosine'"),
        ({"STEPSIZE": ("a",)}, "STEPSIZE must hold whole numbers"),
        ({"WARMUP_EPOCH": 1, "WARMUP_TYPE": "slow"}, "WARMUP_TYPE is 'slow'"),
        ({"MAX_EPOCH": 0}, "MAX_EPOCH is 0"),
    ],
)
def test_mistakes(options, complaint):
    with pytest.raises(UserError, match=complaint):
        rates(1, **options)
