"""How far confidences are from the accuracies that they promise."""

from __future__ import annotations

import torch

BINS = 15


def expected_calibration_error(
    confidence: torch.Tensor, right: torch.Tensor, bins: int = BINS
) -> float:
    """Return Σ_b n_b/n |accuracy_b − confidence_b| in percent, over bins of equal width.

    Of Guo et al. (ICML 2017, arXiv 1706.04599); bin b holds what is in (b/bins, (b+1)/bins].

    Args:
        confidence: (n,) probabilities of the classes that were chosen.
        right: (n,) whether they were the right ones.
        bins: how many.
    """
    sure = confidence.double()
    place = (sure * bins).ceil().long().clamp(1, bins) - 1
    gaps = torch.zeros(bins, dtype=torch.float64, device=sure.device)
    gaps.index_add_(0, place, right.double() - sure)
    return float(100 * gaps.abs().sum() / len(sure))
