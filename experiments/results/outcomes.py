"""What became of each test image, counted: which classes are taken for which, and how sure.

Read from a run's outcomes.npz, or the predictions.npz of a run that has only that.
"""

from __future__ import annotations

import sys
import zipfile
import zlib
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from dassl.utils import UserError, printable
from experiments.results.scores import Score
from experiments.results.subjects import Subject, Subjects, chosen_shots
from experiments.results.summary import Summary
from experiments.results.tables import method_order

FILES = ("outcomes.npz", "predictions.npz")
BINS = 15  # of confidence, in the diagram
_DAMAGED = (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error)


@dataclass
class Tally:
    """The outcomes of a method on some classes of a data set, those of all seeds together.

    `counts` (C, C) are images by true class and predicted one; `images`, `right`, `sure` (BINS,)
    those by confidence: how many, how many of them right, the sum of confidences. `ece` has the
    calibration errors that the runs told, in percent.
    """

    names: list[str]
    counts: np.ndarray
    images: np.ndarray = field(default_factory=lambda: np.zeros(BINS))
    right: np.ndarray = field(default_factory=lambda: np.zeros(BINS))
    sure: np.ndarray = field(default_factory=lambda: np.zeros(BINS))
    ece: list[float] = field(default_factory=list)

    def add(self, labels: np.ndarray, predicted: np.ndarray, confidence: np.ndarray) -> None:
        """Count further images: three arrays of one length."""
        np.add.at(self.counts, (labels, predicted), 1)
        place = np.clip(np.ceil(confidence * BINS).astype(int), 1, BINS) - 1
        for total, weights in (
            (self.images, np.ones(len(place))),
            (self.right, labels == predicted),
            (self.sure, confidence),
        ):
            total += np.bincount(place, weights, BINS)

    @property
    def accuracy(self) -> float:
        """The share of images that are right, in percent."""
        return float(100 * self.counts.trace() / self.counts.sum())

    def confused(self, most: int) -> list[tuple[str, str, int, int]]:
        """Return the pairs most often confused: (true, taken for, images, of how many)."""
        wrong = self.counts - np.diag(self.counts.diagonal())
        order = np.argsort(wrong, axis=None, kind="stable")[::-1][:most]
        pairs = zip(*np.unravel_index(order, wrong.shape), strict=True)
        return [
            (self.names[i], self.names[j], int(wrong[i, j]), int(self.counts[i].sum()))
            for i, j in pairs
            if wrong[i, j]
        ]


Part = tuple[str, str]  # data set, classes


def tallies(summary: Summary, shots: int | None = None) -> dict[Part, dict[Subject, Tally]]:
    """Return what can be counted of runs at so many shots, or the most; sweeps are left out."""
    protocols = ("base_to_new", "all_classes")
    scores = [s for s in summary.scores if s.protocol in protocols and not summary.is_swept(s)]
    subject, chosen = Subjects(summary), chosen_shots(summary, shots)
    found: dict[Part, dict[Subject, Tally]] = {}
    for score in sorted(scores, key=lambda s: (s.dataset, s.classes, method_order(s), s.seed)):
        if score.shots == chosen and (images := _images(score)):
            names, arrays = images
            mine = found.setdefault((score.dataset, score.classes), {})
            tally = mine.get(subject(score))
            if tally is None:
                tally = Tally(names, np.zeros((len(names), len(names)), int))
                mine[subject(score)] = tally
            if tally.names != names:
                print(f"left out of pictures, of other classes: {score.folder}", file=sys.stderr)
                continue
            tally.add(*arrays)
            tally.ece += [score.ece] if score.ece is not None else []
    return found


def _images(score: Score) -> tuple[list[str], tuple[np.ndarray, np.ndarray, np.ndarray]] | None:
    """Return class names, and labels, predictions, confidences; None where a run has none."""
    path = next((p for name in FILES if (p := score.folder / name).is_file()), None)
    if path is None:
        return None
    try:
        return _read(path, score.result.get("classnames"))
    except UserError as error:
        print(f"no outcomes of a run: {error}", file=sys.stderr)
        return None


def _read(
    path: Path, names: list[str] | None
) -> tuple[list[str], tuple[np.ndarray, np.ndarray, np.ndarray]]:
    try:
        with np.load(path, allow_pickle=False) as file:
            if "logits" in file:
                logits = file["logits"].astype(float)
                odds = np.exp(logits - logits.max(axis=1, keepdims=True))
                arrays = (file["labels"], odds.argmax(axis=1), odds.max(axis=1) / odds.sum(axis=1))
                names = file["classnames"].tolist()
            else:
                arrays = (file["labels"], file["predicted"], file["confidence"].astype(float))
    except _DAMAGED as error:
        raise UserError(f"{path} is damaged: {error}") from error
    labels, predicted, confidence = arrays
    if not (isinstance(names, list) and all(isinstance(name, str) for name in names)):
        raise UserError(f"{path}: the run's result.json doesn't name its classes")
    whole = all(np.issubdtype(a.dtype, np.integer) for a in (labels, predicted))
    if not whole or not labels.shape == predicted.shape == confidence.shape == (labels.size,):
        raise UserError(f"{path} is damaged: its arrays are no labels, classes and confidences")
    if not labels.size or not _within((labels, predicted), len(names)):
        raise UserError(f"{path}: its labels aren't those of {len(names)} classes")
    if not ((confidence >= 0) & (confidence <= 1 + 1e-6)).all():
        raise UserError(f"{path}: a confidence is no probability")
    return [printable(name) for name in names], (labels, predicted, confidence)


def _within(arrays: Iterable[np.ndarray], number: int) -> bool:
    return all(((array >= 0) & (array < number)).all() for array in arrays)
