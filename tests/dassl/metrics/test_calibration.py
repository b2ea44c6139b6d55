from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dassl.metrics import expected_calibration_error


def test_by_hand():
    # Bins of a fifth: two images at .5 and .6, one of them right; one at .9, right.
    sure = torch.tensor([0.5, 0.6, 0.9], dtype=torch.float64)
    right = torch.tensor([True, False, True])
    expected = 100 * (abs(1 - 1.1) + abs(1 - 0.9)) / 3
    assert expected_calibration_error(sure, right, bins=5) == pytest.approx(expected)
    assert expected_calibration_error(torch.ones(4), torch.ones(4, dtype=torch.bool)) == 0
    assert expected_calibration_error(torch.ones(4), torch.zeros(4, dtype=torch.bool)) == 100


@given(st.lists(st.tuples(st.floats(0.01, 1), st.booleans()), min_size=1, max_size=40))
def test_against_a_loop(pairs):
    sure, right = (torch.tensor(column) for column in zip(*pairs, strict=True))
    total, sure = 0.0, sure.double()
    for b in range(15):
        inside = [i for i, p in enumerate(sure) if b < p * 15 <= b + 1]
        if inside:
            accuracy = sum(float(right[i]) for i in inside) / len(inside)
            mean = sum(float(sure[i]) for i in inside) / len(inside)
            total += len(inside) / len(pairs) * abs(accuracy - mean)
    assert expected_calibration_error(sure, right) == pytest.approx(100 * total, abs=1e-9)
