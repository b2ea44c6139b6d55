from __future__ import annotations

import pytest
import torch

from dassl.metrics import compute_accuracy, compute_distance_matrix


def test_accuracy():
    scores = torch.tensor([[3.0, 2, 1], [1, 3, 2], [1, 2, 3], [3, 1, 2]])
    target = torch.tensor([0, 2, 0, 2])
    one, two, many = compute_accuracy(scores, target, topk=(1, 2, 9))
    assert one.shape == (1,)
    assert (one.item(), two.item(), many.item()) == (25.0, 75.0, 100.0)
    assert compute_accuracy((scores, None), target)[0].item() == 25.0


def test_distances():
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(n, 4, generator=generator, dtype=torch.float64) for n in (3, 5))
    assert torch.allclose(compute_distance_matrix(a, b), torch.cdist(a, b) ** 2)
    cosines = torch.cosine_similarity(a[:, None], b[None], dim=-1)
    assert torch.allclose(compute_distance_matrix(a, b, "cosine"), 1 - cosines)
    with pytest.raises(ValueError, match="metric"):
        compute_distance_matrix(a, b, "none")
