"""Accuracy, macro F1, calibration error, accuracy per class, confusion matrix."""

from __future__ import annotations

from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dassl.config import CfgNode
from dassl.metrics import expected_calibration_error
from dassl.utils import NOT_FINITE, UserError, write_tensors

from .build import EVALUATOR_REGISTRY


class EvaluatorBase:
    """`reset`, then `process` for each batch, then `evaluate`.

    After `evaluate`, `total` is the number of images, `results` what it returned, and `per_class`
    may hold a dict per class, and `outcomes` arrays with an entry per image, to be kept.
    """

    def __init__(self, cfg: CfgNode) -> None:
        self.cfg = cfg
        self.total = 0
        self.results: OrderedDict[str, float] = OrderedDict()
        self.per_class: list[dict[str, Any]] = []
        self.outcomes: dict[str, np.ndarray] = {}

    def reset(self) -> None:
        """Forget all batches."""
        raise NotImplementedError

    def process(self, mo: torch.Tensor, gt: torch.Tensor) -> None:
        """Take the model's output and the labels of a batch."""
        raise NotImplementedError

    def evaluate(self) -> OrderedDict[str, float]:
        """Return the results by name; the first is the one that models are chosen by."""
        raise NotImplementedError


@EVALUATOR_REGISTRY.register()
class Classification(EvaluatorBase):
    """Evaluation of (B, C) scores against (B,) labels, in percent.

    Args:
        cfg: the config.
        lab2cname: class name by label, for the accuracy per class.
    """

    def __init__(
        self, cfg: CfgNode, lab2cname: dict[int, str] | None = None, **kwargs: Any
    ) -> None:
        super().__init__(cfg)
        self._lab2cname = lab2cname or {}
        self.reset()

    def reset(self) -> None:
        """Forget all batches, and the results."""
        # Kept on their device: a pass over the test images waits for the GPU only at its end.
        self._true: list[torch.Tensor] = []
        self._pred: list[torch.Tensor] = []
        self._sure: list[torch.Tensor] = []
        self._finite: list[torch.Tensor] = []
        self._counts = torch.zeros(0, 0, dtype=torch.int64)
        self.total = 0
        self.results = OrderedDict()
        self.per_class = []
        self.outcomes = {}

    def process(self, mo: torch.Tensor, gt: torch.Tensor) -> None:
        """Take scores `mo` (B, C) and labels `gt` (B,); they stay on their device."""
        self._finite.append(mo.isfinite().all())
        self._pred.append(mo.argmax(dim=1))
        full = mo.to(torch.promote_types(mo.dtype, torch.float32))
        self._sure.append(full.softmax(dim=1).amax(dim=1))
        self._true.append(gt)

    def evaluate(self) -> OrderedDict[str, float]:
        """Return accuracy, error_rate, macro_f1, ece and, with PER_CLASS_RESULT, perclass_accuracy.

        The macro F1 is the mean over the classes that have images; the expected calibration error
        is that of the scores' softmax. Details per class are then in `per_class`; `outcomes` has
        `labels` and `predicted` (n,) and the softmax's maximum, `confidence` (n,), in the order of
        the images. Raises UserError for scores that are infinite or NaN.
        """
        if not self._true:
            raise UserError("there is nothing to evaluate")
        if not torch.stack(self._finite).all():
            raise UserError(NOT_FINITE)
        true, pred = (torch.cat(parts).cpu() for parts in (self._true, self._pred))
        sure = torch.cat(self._sure).cpu()
        self.outcomes = {
            "labels": true.to(torch.int32).numpy(),
            "predicted": pred.to(torch.int32).numpy(),
            "confidence": sure.float().numpy(),
        }
        size = int(max(true.max(), pred.max())) + 1
        # counts[i, j]: images of class i taken for class j
        counts = torch.bincount(true * size + pred, minlength=size * size).reshape(size, size)
        self._counts = counts
        self.total, correct = len(true), int(counts.trace())
        accuracy = 100.0 * correct / self.total
        results = OrderedDict(
            accuracy=accuracy,
            error_rate=100.0 - accuracy,
            macro_f1=_macro_f1(counts),
            ece=expected_calibration_error(sure, true == pred),
        )
        print(
            "=> result\n"
            f"* total: {self.total:,}\n"
            f"* correct: {correct:,}\n"
            f"* accuracy: {accuracy:.1f}%\n"
            f"* error: {results['error_rate']:.1f}%\n"
            f"* macro_f1: {results['macro_f1']:.1f}%\n"
            f"* ece: {results['ece']:.1f}%"
        )
        if self.cfg.TEST.PER_CLASS_RESULT:
            results["perclass_accuracy"] = self._evaluate_classes(counts)
        if self.cfg.TEST.COMPUTE_CMAT:
            path = Path(self.cfg.OUTPUT_DIR) / "cmat.pt"
            write_tensors(counts / counts.sum(dim=1, keepdim=True).clamp(min=1), path)
            print(f"Confusion matrix saved to {path}")
        self.results = results
        return results

    def accuracy_of(self, classes: slice) -> float | None:
        """Return how many of these classes' images are right, in percent; None if there are none.

        They are told from all classes. After `evaluate`.
        """
        images = int(self._counts[classes].sum())
        return 100.0 * int(self._counts.diagonal()[classes].sum()) / images if images else None

    def _evaluate_classes(self, counts: torch.Tensor) -> float:
        """Print and keep what is known of each class that has images.

        The accuracy of a class is its recall. Its precision is None if nothing was taken for it.
        Returns the mean of the accuracies.
        """
        predicted = counts.sum(dim=0).tolist()
        print("=> per-class result")
        self.per_class = []
        for label, row in enumerate(counts):
            if total := int(row.sum()):
                correct = int(row[label])
                name = self._lab2cname.get(label, "")
                accuracy = 100.0 * correct / total
                taken = predicted[label]
                precision = 100.0 * correct / taken if taken else None
                self.per_class.append(
                    {
                        "label": label,
                        "classname": name,
                        "total": total,
                        "correct": correct,
                        "accuracy": accuracy,
                        "recall": accuracy,
                        "predicted": taken,
                        "precision": precision,
                    }
                )
                print(
                    f"* class: {label} ({name})\ttotal: {total:,}\tcorrect: {correct:,}\t"
                    f"acc: {accuracy:.1f}%\tprecision: "
                    + (f"{precision:.1f}%" if taken else "none predicted")
                )
        mean = sum(entry["accuracy"] for entry in self.per_class) / len(self.per_class)
        print(f"* average: {mean:.1f}%")
        return mean


def _macro_f1(counts: torch.Tensor) -> float:
    """Return the mean F1 = 2 hits / (images + predictions), in percent, of classes with images."""
    images, predictions = counts.sum(dim=1), counts.sum(dim=0)
    present = images > 0
    f1 = 2 * counts.diagonal().double() / (images + predictions).clamp(min=1)
    return float(100 * f1[present].mean())
