"""Kernels are counted: what computes, by hand; a row takes less than half of the text tower's."""

from __future__ import annotations

import pytest
import torch

from benchmarks import kernels


def test_views_and_allocations_are_free():
    x = torch.ones(2, 3, requires_grad=True)
    with kernels.Kernels() as found:
        y = x.t().unflatten(0, (3, 1)).detach()
        torch.empty_like(y)
    assert found.number == 0
    with kernels.Kernels() as found:
        (2 * x + 1).relu()
    assert found.number == 3


def test_a_step_in_one_row(capsys):
    kernels.main(["--methods", "CoOp", "DePT_CoOp", "VPT", "--classes", "20"])
    lines = [line.strip("|").split("|") for line in capsys.readouterr().out.splitlines()[2:]]
    found = {name.strip(): [int(n.replace(",", "")) for n in rest] for name, *rest in lines}
    for name in ("CoOp", "DePT_CoOp"):
        apart, in_a_row = found[name]
        assert 0 < in_a_row < 0.6 * apart
    assert found["VPT"][0] == found["VPT"][1]  # nothing is trained in its text tower


def test_an_unknown_method_is_one_line(capsys):
    with pytest.raises(SystemExit) as stopped:
        kernels.main(["--methods", "CoOpp"])
    assert stopped.value.code == 2 and "CoOp" in capsys.readouterr().err
