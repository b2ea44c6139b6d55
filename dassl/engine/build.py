"""The registered trainers."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dassl.config import CfgNode
from dassl.utils import Registry

if TYPE_CHECKING:
    from .trainer import TrainerBase

TRAINER_REGISTRY = Registry("TRAINER")


def build_trainer(cfg: CfgNode) -> TrainerBase:
    """Return the trainer `cfg.TRAINER.NAME`, made from `cfg`."""
    trainer = TRAINER_REGISTRY.get(cfg.TRAINER.NAME)
    if cfg.VERBOSE:
        print(f"Loading trainer: {cfg.TRAINER.NAME}")
    for line in getattr(cfg, "remarks", ()):
        print(line)
    return trainer(cfg)
