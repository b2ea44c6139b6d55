"""Small trained runs, made once in this process."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

import datasets  # noqa: F401 - registers the data sets
import train
from dassl.engine import build_trainer
from dassl.utils import set_random_seed

os.environ.setdefault("OMP_NUM_THREADS", "1")

SMALL = (
    *("INPUT.SIZE", "(32, 32)", "OPTIM.MAX_EPOCH", "2", "DATASET.NUM_SHOTS", "2"),
    *("TRAINER.COOP.N_CTX", "3", "DATALOADER.TEST.BATCH_SIZE", "4"),
)


@pytest.fixture(scope="session")
def runs(picture_root, backbone, tmp_path_factory) -> dict[str, Path]:
    """Run folders: DePT_CoOp and CoOp trained on the base classes, the oracle on all of them."""
    folders = {}
    for name, trainer, classes in (
        ("DePT_CoOp", "DePT_CoOp", "base"),
        ("CoOp", "CoOp", "base"),
        ("oracle", "CoOp", "all"),
    ):
        folders[name] = tmp_path_factory.mktemp(name) / "run"
        arguments = [
            *("--trainer", trainer, "--root", str(picture_root), "--backbone", str(backbone)),
            *("--output-dir", str(folders[name]), "--seed", "1"),
            *("--dataset-config-file", "configs/datasets/image_folder.yaml"),
            *("--config-file", f"configs/trainers/{trainer}/mini.yaml", *SMALL),
            *("DATASET.SUBSAMPLE_CLASSES", classes),
        ]
        cfg = train.setup_cfg(train.parse_args(arguments))
        set_random_seed(cfg.SEED)
        build_trainer(cfg).train()
    return folders
