"""What the benchmarks count."""

import pytest
import torch
import torch.nn.functional as F

from benchmarks import timing
from clip import fused
from clip.fused import linear


@pytest.mark.parametrize("rows", [4, 2048])
def test_products_are_counted_whichever_library_computes_them(rows):
    x = torch.randn(rows, 256, requires_grad=True)
    weight = torch.randn(512, 256)
    forward = timing.gflop(lambda: linear(x, weight, None))
    assert forward == pytest.approx(2e-9 * rows * 256 * 512)
    both = timing.gflop(lambda: linear(x, weight, None).sum().backward())
    assert both == pytest.approx(2 * forward)


def test_both_libraries_are_measured():
    ratios = timing.onednn_ratios()
    assert len(ratios) == (6 if fused.has_onednn() else 0)
    assert all(ratio > 0 for ratio in ratios.values())


def test_attention_is_counted():
    q = torch.randn(2, 3, 5, 8, requires_grad=True)
    k = v = torch.randn(2, 3, 7, 8)
    product = 2e-9 * 2 * 3 * 5 * 7 * 8
    assert timing.gflop(lambda: F.scaled_dot_product_attention(q, k, v)) == pytest.approx(
        2 * product
    )
    both = timing.gflop(lambda: F.scaled_dot_product_attention(q, k, v).sum().backward())
    assert both == pytest.approx(7 * product)
