"""What a trained model makes of a data set: features, logits, labels. Shared by the analyses."""

from __future__ import annotations

import contextlib
import io
import os
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch

from dassl.data import DataManager
from dassl.utils import NOT_FINITE, UserError, set_random_seed
from tuning.further_data import other_templates_of
from tuning.method import Classes
from tuning.run import Run, open_run


@dataclass
class Batch:
    """Images of a data set as a model sees them.

    image (B,D) and text (C,D) or (B,C,D) are L2-normalized, float32, on the CPU; logits (B,C);
    labels (B,).
    """

    image: torch.Tensor
    text: torch.Tensor
    logits: torch.Tensor
    labels: torch.Tensor


@dataclass
class Analyzed:
    """A trained method, and the data set it is looked at on. classes: those of the data set."""

    run: Run
    data: DataManager
    classes: Classes


def load_run(
    run: str | os.PathLike, root: str = "", classes: str = "", backbone: str = ""
) -> Analyzed:
    """Open a run and read its data.

    Args:
        run: the run's folder, or a checkpoint in it.
        root: where the data sets lie now, if not where they were.
        classes: base, new or all; by default what the run was trained on.
        backbone: CLIP's name or file, if not the run's.

    Raises:
        UserError: if there is no such run or data, or its trainer isn't one of `trainers/`.
    """
    import datasets  # noqa: F401 - registers the data sets

    opened = open_run(run, backbone)
    cfg = opened.cfg
    for key, value in (("DATASET.ROOT", root), ("DATASET.SUBSAMPLE_CLASSES", classes)):
        if value:
            cfg.merge_from_list([key, value])
    cfg.VERBOSE = False
    with contextlib.redirect_stdout(io.StringIO()):
        set_random_seed(cfg.SEED)
        data = DataManager(cfg)
    template = opened.trainer_class.template_of(cfg, data.dataset)
    chosen = Classes(
        list(data.classnames),
        list(data.class_keys),
        template,
        dict(data.label_space),
        other_templates=other_templates_of(cfg, data.dataset),
    )
    opened.method(chosen)
    return Analyzed(opened, data, chosen)


@torch.no_grad()
def batches(analyzed: Analyzed) -> Iterator[Batch]:
    """Yield the test images in the data set's order."""
    method = analyzed.run.method(analyzed.classes)
    for batch in analyzed.data.test_loader:
        features = analyzed.run.features(batch["img"], analyzed.classes)
        logits = method.logits(features).float().cpu()
        if not logits.isfinite().all():
            raise UserError(NOT_FINITE)
        yield Batch(_unit(features.image), _unit(features.text), logits, batch["label"])


def _unit(x: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.normalize(x.float(), dim=-1).cpu()


def channel_importance(analyzed: Analyzed, window: int) -> np.ndarray:
    """Return CI(S) for S = `window` consecutive channels from each channel on, wrapping: (D,).

    CI(S) = mean_j s_jy(S) / (mean_c s_jc(S) + 1e-12), s_jc(S) = max(0, Σ_{r∈S} f̂_j^r ê_c^r). The
    paper's S is one channel; its released code takes 64.
    """
    total, images = 0.0, 0
    for batch in batches(analyzed):
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
