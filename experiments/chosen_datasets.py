"""Which data sets a plan's words mean: `dtd`, a config's name, or `mine=FOLDER`, a user's own.

A set's label is what folders and tables call it: its DATASET.LABEL, or else its config's name.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

from dassl.config import get_cfg_default
from dassl.utils import UserError, suggest
from experiments.results.configs import CONFIGS

OWN = "image_folder"  # the config of `mine=FOLDER`


@dataclass(frozen=True)
class ChosenDataset:
    """A data set of a plan.

    config: the name of its file below configs/datasets. root: where it lies, if that is known of
    it alone. trainers_config: the trainers' config that it asks for, or "".
    """

    label: str
    config: str
    root: str
    trainers_config: str
    own_folder: bool = False

    @property
    def words(self) -> list[str]:
        """What a run of train.py is told of it, beside its config and its root."""
        return ["DATASET.LABEL", self.label] if self.own_folder else []


@cache
def chosen(word: str) -> ChosenDataset:
    """Return the data set that a word means.

    Raises:
        UserError: there is none, or its label can't be its own.
    """
    name, own, folder = word.partition("=")
    names = sorted(path.stem for path in (CONFIGS / "datasets").glob("*.yaml"))
    config = OWN if own else name
    if own and (name in names or not folder):
        why = f"{name} is in configs/datasets already" if folder else "say NAME=FOLDER"
        raise UserError(f"no data set {word}: {why}")
    if config not in names:
        raise UserError(
            f"no data set {config}{suggest(config, names)}; one of: {', '.join(names)}, or "
            "NAME=FOLDER for images of your own"
        )
    cfg = get_cfg_default()
    cfg.merge_from_file(CONFIGS / "datasets" / f"{config}.yaml")
    label = name if own else cfg.DATASET.LABEL or name
    if not re.fullmatch(r"\w[\w.-]*", label):
        raise UserError(f"{word}: a data set can't be called {label!r}: letters, digits, . _ -")
    root = folder if own else cfg.DATASET.ROOT
    return ChosenDataset(label, config, root, cfg.DATASET.CONFIG, bool(own))


def absolute(word: str) -> str:
    """Return the word with its folder, if it has one, below the current one."""
    name, own, folder = word.partition("=")
    return f"{name}={os.path.abspath(os.path.expanduser(folder))}" if own and folder else word


def check_labels(words: Sequence[str]) -> None:
    """Raise UserError if two data sets have one label: their runs would share folders."""
    by_label: dict[str, str] = {}
    for word in words:
        label = chosen(word).label
        other = by_label.setdefault(label, word)
        if other != word:
            raise UserError(f"the data sets {other} and {word} are both called {label}")
