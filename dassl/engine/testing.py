"""Evaluation: the loop over test batches, and what is said of it."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dassl.config import CfgNode
from dassl.config.severities import NONE, TYPOS
from dassl.data import DataManager
from dassl.data.datasets import number_of_base
from dassl.evaluation import EvaluatorBase
from dassl.utils import UserError, check_choice, find_checkpoint, stop_if_wanted

from .base import TrainerBase
from .progress import Progress
from .records import Records
from .resuming import Resuming


class Testing(Resuming, TrainerBase):
    """The part of `SimpleTrainer` that tests."""

    _records: Records
    cfg: CfgNode
    device: torch.device
    dm: DataManager
    evaluator: EvaluatorBase
    val_loader: Any
    test_loader: Any
    output_dir: str
    loaded_epoch: int | None
    template_of: Any
    _in_training: bool
    _model_dir: str
    _tested: Path | None
    model: Any  # what `model_inference` calls, unless a subclass does otherwise

    def final_test(self) -> float:
        """`test` after training; records the result of a trainer with a `test` of its own too."""
        self._result_written = False
        value = self.test()
        if not self._result_written and getattr(self.evaluator, "results", None):
            self._write_result(self.cfg.TEST.SPLIT, self.evaluator.results)
        return value

    @torch.no_grad()
    def test(self, split: str | None = None) -> float:
        """Evaluate on "test" or "val" images; return the first result, usually the accuracy.

        Outside of the training loop this also writes outcomes.npz and result.json, and
        predictions.npz on request.

        Args:
            split: by default cfg.TEST.SPLIT.

        Raises:
            UserError: if the data set has no such images.
        """
        split = split or self.cfg.TEST.SPLIT
        check_choice("TEST.SPLIT", split, ("test", "val"))
        loader = self.val_loader if split == "val" else self.test_loader
        if loader is None:
            raise UserError(f"{self.cfg.DATASET.NAME} has no {split} images")
        print(f"Evaluate on the *{split}* set")
        self.set_model_mode("eval")
        self.evaluator.reset()
        keep = self.cfg.TEST.SAVE_PREDICTIONS and not self._in_training
        kept: list[tuple[torch.Tensor, torch.Tensor, list[str]]] = []
        for batch in Progress(self.testing_batches(loader), len(loader), split):
            stop_if_wanted()
            input, label = self.parse_batch_test(batch)
            output = self.model_inference(input)
            self.evaluator.process(output, label)
            if keep:
                kept.append((output.float().cpu(), label.cpu(), list(batch["impath"])))
        results = self.evaluator.evaluate()
        for name, value in results.items():
            self.write_scalar(f"{split}/{name}", value, self.epoch)
        if keep:
            self._write_predictions(kept)
        if not self._in_training:
            if outcomes := getattr(self.evaluator, "outcomes", None):
                self._records.write_outcomes(outcomes)
            self._write_result(split, results)
        return next(iter(results.values()))

    def testing_batches(self, loader: Iterable[dict[str, Any]]) -> Iterable[dict[str, Any]]:
        """The batches of an evaluation; a trainer may prepare them further."""
        return loader

    def _write_predictions(self, kept: list[tuple[torch.Tensor, torch.Tensor, list[str]]]) -> None:
        logits, labels, paths = zip(*kept, strict=True)
        root = Path(self.cfg.DATASET.ROOT).resolve()
        self._records.write_predictions(
            {
                "logits": torch.cat(logits).numpy(),
                "labels": torch.cat(labels).numpy(),
                "classnames": np.array(self.dm.classnames),
                "paths": np.array([_relative(p, root) for batch in paths for p in batch]),
            }
        )

    def _write_result(self, split: str, results: dict[str, float]) -> None:
        result = {
            **self._records.circumstances(self.dm.dataset),
            **self._resolved(),
            **results,
            "num_test": self.evaluator.total,
            "split": split,
            "epoch": self.loaded_epoch,
            "selection": self._selection(),
            "seconds": self._seconds(),
            "skipped_images": self.dm.skipped_images,
            "decoding": self.dm.decoding,
            "corruption": self._corruption(split),
            "halves": self._halves(),
            **self.result_extra(),
        }
        if self.cfg.TEST.PER_CLASS_RESULT:
            result["per_class"] = self.evaluator.per_class
        if self._model_dir:
            result["model_dir"] = self._model_dir
        self._records.write_config()
        self._records.write_result(result)
        self._result_written = True

    def _corruption(self, split: str) -> dict[str, Any] | None:
        """What was done to the images or names that were tested; None for nothing."""
        node = self.cfg.TEST
        if node.CORRUPTION == NONE or (node.CORRUPTION != TYPOS and split != node.SPLIT):
            return None
        return {"name": node.CORRUPTION, "severity": node.SEVERITY}

    def _halves(self) -> dict[str, float | None] | None:
        """The accuracies of base and of new classes' images, where both were told apart."""
        classes, evaluator = len(self.dm.classnames), self.evaluator
        if self.cfg.DATASET.SUBSAMPLE_CLASSES != "all" or not hasattr(evaluator, "accuracy_of"):
            return None
        half = number_of_base(classes)
        return {
            "base": evaluator.accuracy_of(slice(0, half)),
            "new": evaluator.accuracy_of(slice(half, classes)),
        }

    def result_extra(self) -> dict[str, Any]:
        """Return entries to add to result.json."""
        return {}

    def _resolved(self) -> dict[str, Any]:
        """What it takes to use the model, and to know what it was tested on."""
        views = getattr(self.test_loader, "dataset", None)
        return {
            "identity": self.identity,
            "classnames": list(self.dm.classnames),
            "class_keys": list(self.dm.class_keys),
            "template": self.template_of(self.cfg, self.dm.dataset),
            "transform": repr(getattr(views, "transform", None)),
        }

    def _selection(self) -> dict[str, Any] | None:
        """How the epoch was chosen, and on what; None where the last one is taken."""
        if self.cfg.TEST.FINAL_MODEL != "best_val":
            return None
        same = self.validates_on_test_images()
        if same:
            print("The validation images, which chose the epoch, are the test images")
        return {"images": "val", "images_are_test_images": same}

    def validates_on_test_images(self) -> bool:
        """Whether the data set's validation images are its test images, as ImageNet's are."""
        val, test = self.dm.dataset.val or [], self.dm.dataset.test or []
        return {item.impath for item in val} == {item.impath for item in test}

    def load_model(self, directory: str | os.PathLike | None, epoch: int | None = None) -> None:
        """As `TrainerBase.load_model`; remembers where the weights come from."""
        super().load_model(directory, epoch)
        if directory and Path(directory).resolve() != Path(self.output_dir).resolve():
            self._model_dir = str(directory)
            self._tested = find_checkpoint(directory, self.get_model_names()[0], epoch)
            self.__dict__.pop("identity", None)

    def check_corruption(self) -> None:
        """Raise UserError if TEST.CORRUPTION would change the training."""
        node = self.cfg.TEST
        if node.CORRUPTION == TYPOS:
            raise UserError(
                f"TEST.CORRUPTION {TYPOS} misspells the names that a method is trained with: train "
                "without it, and test the run with --eval-only"
            )
        if node.CORRUPTION != NONE and (node.FINAL_MODEL, node.SPLIT) == ("best_val", "val"):
            raise UserError(
                f"TEST.CORRUPTION {node.CORRUPTION} corrupts the validation images (TEST.SPLIT), "
                "and TEST.FINAL_MODEL best_val chooses the epoch by them: set one otherwise"
            )

    def parse_batch_test(self, batch: dict[str, Any]) -> tuple[torch.Tensor, torch.Tensor]:
        """Return images and labels on the device."""
        return self._to_device(batch["img"]), self._to_device(batch["label"])

    def _to_device(self, tensor: torch.Tensor) -> torch.Tensor:
        return tensor.to(self.device, non_blocking=True)

    def model_inference(self, input: torch.Tensor) -> torch.Tensor:
        """Return the scores (B, C) of images (B, 3, I, I), I pixels a side."""
        return self.model(input)


def _relative(path: str, root: Path) -> str:
    """Return `path` as seen from `root`, if it lies below."""
    absolute = Path(path).resolve()
    return absolute.relative_to(root).as_posix() if absolute.is_relative_to(root) else path
