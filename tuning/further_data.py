"""Several data sets in one run: DATASET.FURTHER names those that are trained on beside its own.

Each brings its few-shot training images and its classes. A step takes a batch of one of them, in
turn, the run's own first; an epoch goes once through each, and one that is through is left out.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from dassl.config import CfgNode
from dassl.config.identity import cache_folder, data_of
from dassl.data import DataManager
from dassl.data.data_manager import template_of
from dassl.data.datasets import DatasetBase, build_dataset
from dassl.utils import UserError

from .method import Classes


def further_cfgs(cfg: CfgNode) -> list[CfgNode]:
    """The run's config with each further data set in place of its own.

    Raises:
        UserError: a file isn't there, or one is named twice.
    """
    found = []
    if len(set(cfg.DATASET.FURTHER)) < len(cfg.DATASET.FURTHER):
        raise UserError(f"DATASET.FURTHER names a file twice: {', '.join(cfg.DATASET.FURTHER)}")
    for path in cfg.DATASET.FURTHER:
        if not Path(path).is_file():
            raise UserError(f"DATASET.FURTHER: there is no config file {path}")
        own = cfg.clone()
        own.defrost()
        own.DATASET.FURTHER = ()
        own.DATASET.TEMPLATE = ""
        own.merge_from_file(str(path))
        own.freeze()
        found.append(own)
    return found


def classes_of(cfg: CfgNode, manager: DataManager, template_name: str) -> Classes:
    """The classes of a further data set, with its own template."""
    data = manager.dataset
    return Classes(
        list(manager.classnames),
        list(manager.class_keys),
        template_of(cfg, data, template_name),
        template_joins_ensembles=data.template_joins_ensembles,
        images=len(data.train_x or ()),
        other_templates=other_templates_of(cfg, data),
    )


def further_classes(managers: Iterable[DataManager], template_name: str) -> tuple[Classes, ...]:
    """The classes of each further data set."""
    return tuple(classes_of(manager.cfg, manager, template_name) for manager in managers)


def other_templates_of(
    cfg: CfgNode, dataset: DatasetBase | type[DatasetBase], names: Iterable[str] | None = None
) -> dict[str, str]:
    """A data set's templates by name, of these names or all.

    None where DATASET.TEMPLATE takes their place.
    """
    known = {} if cfg.DATASET.TEMPLATE else dict(dataset.other_templates)
    return known if names is None else {name: known[name] for name in names if name in known}


def digests_of(cfg: CfgNode, template_name: str) -> dict[str, str]:
    """A digest of each further data set's classes, template, training labels and images."""
    found = {}
    for path, own in zip(cfg.DATASET.FURTHER, further_cfgs(cfg), strict=True):
        data = build_dataset(own)
        template = template_of(own, data, template_name)
        parts: Any = data_of(data, template, ["train_x"], cache_folder(own))
        text = json.dumps(parts, sort_keys=True)
        found[f"DATASET.FURTHER {path}"] = hashlib.sha256(text.encode()).hexdigest()
    return found


def in_turn(batches: Sequence[Iterable[dict[str, Any]]]) -> Iterator[dict[str, Any]]:
    """A batch of each in turn until all are through; "dataset" is () its number, from 0."""
    left = {number: iter(each) for number, each in enumerate(batches)}
    while left:
        for number, each in list(left.items()):
            batch = next(each, None)
            if batch is None:
                del left[number]
            else:
                yield {**batch, "dataset": torch.tensor(number)}
