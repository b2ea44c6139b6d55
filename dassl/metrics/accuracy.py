"""Top-k accuracy."""

from __future__ import annotations

from collections.abc import Sequence

import torch


@torch.no_grad()
def compute_accuracy(
    output: torch.Tensor | Sequence[torch.Tensor],
    target: torch.Tensor,
    topk: Sequence[int] = (1,),
) -> list[torch.Tensor]:
    """Return the percentage of rows whose target is among the k highest scores, for each k.

    Args:
        output: (B, C) scores; of several outputs the first counts.
        target: (B,) labels.
        topk: the values of k; above C they count as C.

    Returns:
        One tensor of shape (1,) per k, on the device of `output`.
    """
    scores = output[0] if isinstance(output, (tuple, list)) else output
    widest = min(max(topk), scores.shape[1])
    hits = scores.topk(widest, dim=1).indices.eq(target[:, None])  # (B, widest)
    return [hits[:, :k].any(dim=1).float().mean().mul(100).reshape(1) for k in topk]
