"""What a trained model makes of a data set: features, logits, labels. Shared by the analyses."""

from __future__ import annotations

import contextlib
import io
import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from dassl.engine import build_trainer
from dassl.utils import NOT_FINITE, UserError
from tuning.prediction import choose_backbone, read_run


@dataclass
class Batch:
    """Images of a data set as a model sees them.

    image (B,D) and text (C,D) or (B,C,D) are L2-normalised, float32, on the CPU; logits (B,C);
    labels (B,).
    """

    image: torch.Tensor
    text: torch.Tensor
    logits: torch.Tensor
    labels: torch.Tensor


def load_run(run: str | os.PathLike, root: str = "", classes: str = "", backbone: str = "") -> Any:
    """Return the trainer of a run, its model loaded, its data read.

    Args:
        run: the run's folder, or a checkpoint in it.
        root: where the data sets lie now, if not where they were.
        classes: base, new or all; by default what the run was trained on.
        backbone: CLIP's name or file, if not the run's.

    Raises:
        UserError: if there is no such run or data, or its trainer isn't one of `trainers/`.
    """
    import datasets  # noqa: F401 - registers the data sets

    folder, epoch, cfg = read_run(run)
    for key, value in (
        ("DATASET.ROOT", root),
        ("DATASET.SUBSAMPLE_CLASSES", classes),
        ("MODEL.BACKBONE.NAME", choose_backbone(folder, epoch, cfg, backbone)),
    ):
        if value:
            cfg.merge_from_list([key, value])
    cfg.VERBOSE = False
    cfg.freeze()
    with contextlib.redirect_stdout(io.StringIO()):
        trainer = build_trainer(cfg)
        trainer.load_model(folder, epoch)
    if not hasattr(trainer, "method"):
        raise UserError(f"{cfg.TRAINER.NAME} gives no features; analyses need a trainer that does")
    trainer.set_model_mode("eval")
    return trainer


@torch.no_grad()
def batches(trainer: Any) -> Iterator[Batch]:
    """Yield the test images in the data set's order."""
    for batch in trainer.test_loader:
        image, label = trainer.parse_batch_test(batch)
        with trainer.autocast():
            features = trainer.method.features(image)
        logits = trainer.method.logits(features)
        if not logits.isfinite().all():
            raise UserError(NOT_FINITE)
        yield Batch(_unit(features.image), _unit(features.text), logits.float().cpu(), label.cpu())


def _unit(x: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.normalize(x.float(), dim=-1).cpu()


def channel_importance(trainer: Any, window: int) -> np.ndarray:
    """Return CI(S) for S = `window` consecutive channels from each channel on, wrapping: (D,).

    CI(S) = mean_j s_jy(S) / (mean_c s_jc(S) + 1e-12), s_jc(S) = max(0, Σ_{r∈S} f̂_j^r ê_c^r). The
    paper's S is one channel; its released code takes 64.
    """
    total, images = 0.0, 0
    for batch in batches(trainer):
        text = batch.text if batch.text.dim() == 3 else batch.text.expand(len(batch.image), -1, -1)
        # A few images at a time: B·C·D products.
        for f, e, y in zip(*(t.split(8) for t in (batch.image, text, batch.labels)), strict=True):
            products = f.double().unsqueeze(1) * e  # (B,C,D)
            similarity = window_sums(products, window).clamp(min=0)
            own = similarity[torch.arange(len(y)), y]  # (B,D)
            total = total + (own / (similarity.mean(dim=1) + 1e-12)).sum(dim=0)
            images += len(y)
    return (total / images).numpy()


def window_sums(x: torch.Tensor, window: int) -> torch.Tensor:
    """Return the sums over `window` neighbours in the last dimension, wrapping; shape as x."""
    wrapped = torch.cat([x, x[..., : window - 1]], dim=-1)
    sums = torch.nn.functional.pad(wrapped.cumsum(dim=-1), (1, 0))
    return sums[..., window:] - sums[..., :-window]
