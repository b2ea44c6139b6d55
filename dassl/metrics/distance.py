"""Distances between two sets of feature vectors."""

from __future__ import annotations

import torch
from torch.nn import functional as F


def compute_distance_matrix(
    input1: torch.Tensor, input2: torch.Tensor, metric: str = "euclidean"
) -> torch.Tensor:
    """Return the (m, n) distances between the rows of (m, D) and (n, D); see `metric` below.

    "euclidean" is the squared distance, "cosine" one minus the cosine.
    """
    metrics = {"euclidean": euclidean_squared_distance, "cosine": cosine_distance}
    if metric not in metrics:
        raise ValueError(f"metric must be one of {sorted(metrics)}, not {metric!r}")
    return metrics[metric](input1, input2)


def euclidean_squared_distance(input1: torch.Tensor, input2: torch.Tensor) -> torch.Tensor:
    """Return |a − b|² for every row a of `input1` and b of `input2`."""
    squares = input1.square().sum(dim=1)[:, None] + input2.square().sum(dim=1)
    return squares - 2 * input1 @ input2.T


def cosine_distance(input1: torch.Tensor, input2: torch.Tensor) -> torch.Tensor:
    """Return 1 − cos(a, b) for every row a of `input1` and b of `input2`."""
    return 1 - F.normalize(input1, dim=1) @ F.normalize(input2, dim=1).T
