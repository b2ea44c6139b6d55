"""A run of another trainer that a run is made of: its first stage, in a folder of the run's own."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dassl.config import CfgNode
from dassl.engine import TRAINER_REGISTRY, build_trainer, start_log
from dassl.utils import UserError, get_rng_state, set_random_seed, set_rng_state, setup_logger
from dassl.utils.logger import Tee

from .naming import STAGE_ONE
from .run import standing, tested_file

# What a stage has of its run, beside all of DATASET.
_ITS_RUNS = ("TRAINER.NAME", "OUTPUT_DIR", "RESUME", "SEED", "MODEL.BACKBONE.NAME")


def stage_cfg(cfg: CfgNode, trainer: str, changes: Sequence[Any], key: str) -> CfgNode:
    """The config of the first stage of the run of `cfg`: of `trainer`, with some changes.

    changes: KEY, VALUE, …; key: that they stand under.

    Raises:
        UserError: they aren't pairs of a key and a value, or one is the run's own affair.
    """
    keys = [str(word) for word in changes[::2]]
    for changed in keys:
        if changed in _ITS_RUNS or changed.startswith("DATASET."):
            raise UserError(f"{key} sets {changed}: a stage has its run's")
    stage = cfg.clone()
    stage.defrost()
    stage.merge_from_list(list(changes))
    stage.TRAINER.NAME = trainer
    stage.OUTPUT_DIR = os.path.join(cfg.OUTPUT_DIR, STAGE_ONE)
    stage.RESUME = ""
    TRAINER_REGISTRY.get(trainer).resolve_cfg(stage)
    stage.freeze()
    return stage


def train_stage(stage: CfgNode, cfg: CfgNode) -> Path:
    """Train a stage, or what is left of it; → its checkpoint.

    It is trained, and logged, as a run by itself. What the run of `cfg` draws doesn't depend on it.
    """
    if standing(stage) == "complete":
        print(f"Stage 1, {stage.TRAINER.NAME}, is complete in {stage.OUTPUT_DIR}")
        return tested_file(stage, stage.OUTPUT_DIR)
    print(f"Stage 1, {stage.TRAINER.NAME}, is trained in {stage.OUTPUT_DIR}")
    state, logged = get_rng_state(), isinstance(sys.stdout, Tee)
    start_log(stage)
    try:
        if stage.SEED >= 0:
            print(f"Setting fixed seed: {stage.SEED}")
            set_random_seed(stage.SEED)
        trainer: Any = build_trainer(stage)
        trainer.train()
    finally:
        setup_logger(cfg.OUTPUT_DIR if logged else None, append=True)
        set_rng_state(state)
    print("Stage 1 is complete")
    return tested_file(stage, stage.OUTPUT_DIR)
