"""The registered data sets."""

from __future__ import annotations

from dassl.config import CfgNode
from dassl.config.severities import TYPOS
from dassl.utils import Registry

from ..corruptions import misspelt
from .base_dataset import DatasetBase

DATASET_REGISTRY = Registry("DATASET")


def build_dataset(cfg: CfgNode) -> DatasetBase:
    """Return the data set `cfg.DATASET.NAME`, made from `cfg`; its names misspelt, if so asked."""
    dataset = DATASET_REGISTRY.get(cfg.DATASET.NAME)
    if cfg.VERBOSE:
        print(f"Loading dataset: {cfg.DATASET.NAME}")
    made = dataset(cfg)
    if cfg.TEST.CORRUPTION == TYPOS:
        names = misspelt(made.classnames, cfg.TEST.SEVERITY)
        if cfg.VERBOSE:
            print(f"Class names misspelt, severity {cfg.TEST.SEVERITY}: {', '.join(names[:5])} …")
        made.rename_classes(names)
    return made
