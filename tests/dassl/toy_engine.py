"""A data set of generated images and a trainer with two losses, small enough for every test."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import nn
from torch.nn import functional as F

from dassl.config import CfgNode, get_cfg_default
from dassl.data.datasets import DatasetBase, Datum
from dassl.engine import TrainerX, TrainerXU
from dassl.metrics import compute_accuracy
from dassl.optim import build_lr_scheduler, build_optimizer
from dassl.utils import set_random_seed

COLORS = {"red": (200, 40, 40), "green": (40, 200, 40), "blue": (40, 40, 200)}


def draw_images(root: Path, train: int = 6, test: int = 4) -> None:
    """Write `train` and `test` noisy 20 × 24 images of each color below `root`/toy."""
    rng = np.random.default_rng(0)
    for split, number in (("train", train), ("test", test)):
        for name, color in COLORS.items():
            folder = root / "toy" / split / name
            folder.mkdir(parents=True)
            for i in range(number):
                pixels = rng.normal(color, 50, (20, 24, 3)).clip(0, 255).astype(np.uint8)
                Image.fromarray(pixels).save(folder / f"{i}.png")


class ToyImages(DatasetBase):
    template = "a patch of {}."
    fewshot_hash = "abc"

    def __init__(self, cfg: CfgNode) -> None:
        root = Path(cfg.DATASET.ROOT) / "toy"

        def read(split: str) -> list[Datum]:
            return [
                Datum(str(path), label, domain=i % 2, classname=name, class_key=f"key-{name}")
                for label, name in enumerate(COLORS)
                for i, path in enumerate(sorted((root / split / name).glob("*.png")))
            ]

        test = read("test")
        super().__init__(train_x=read("train"), train_u=test, val=test[::2], test=test)


class _Toy:
    """A linear classifier behind dropout: the training consumes random numbers of its own."""

    def build_model(self) -> None:
        set_random_seed(self.cfg.SEED)
        self.model = nn.Sequential(
            nn.Flatten(), nn.Dropout(0.2), nn.Linear(3 * 8 * 8, 5), nn.Linear(5, self.num_classes)
        )
        lr = self.cfg.OPTIM.LR
        groups = [
            {"params": self.model[2].parameters()},
            {"params": self.model[3].parameters(), "lr": 2 * lr},
        ]
        self.optim = build_optimizer(self.model, self.cfg.OPTIM, groups)
        self.sched = build_lr_scheduler(self.optim, self.cfg.OPTIM)
        self.register_model("model", self.model, self.optim, self.sched)

    def step(self, image: torch.Tensor, label: torch.Tensor) -> dict:
        output = self.model(image)
        parts = {
            "loss_ce": F.cross_entropy(output, label),
            "loss_size": 0.01 * output.square().mean(),
        }
        loss = sum(parts.values())
        self.model_backward_and_update(loss)
        if self.batch_idx + 1 == self.num_batches:
            self.update_lr()
        accuracy = compute_accuracy(output, label)[0].item()
        return {"loss": loss, **parts, "acc": accuracy}


class ToyTrainer(_Toy, TrainerX):
    def forward_backward(self, batch: dict) -> dict:
        image, label, _ = self.parse_batch_train(batch)
        return self.step(image, label)

    def checkpoint_extra(self) -> dict:
        return {**super().checkpoint_extra(), "class_keys": self.dm.class_keys}

    def result_extra(self) -> dict:
        return {"backbone_sha256": "f00"}


class ToyPairTrainer(_Toy, TrainerXU):
    def forward_backward(self, batch_x: dict, batch_u: dict) -> dict:
        image, label, unlabeled = self.parse_batch_train(batch_x, batch_u)
        assert len(unlabeled) == len(image)
        return self.step(image, label)


def toy_cfg(root: Path, output: Path, *options: object) -> CfgNode:
    """The config of a short run on the images in `root`; `options` are KEY, value, …"""
    cfg = get_cfg_default()
    cfg.merge_from_list(
        [
            *("DATASET.ROOT", str(root), "DATASET.NAME", "ToyImages", "OUTPUT_DIR", str(output)),
            *("TRAINER.NAME", "ToyTrainer", "SEED", 1, "USE_CUDA", False, "VERBOSE", False),
            *("INPUT.SIZE", (8, 8), "DATALOADER.NUM_WORKERS", 0),
            *("INPUT.TRANSFORMS", ("random_resized_crop", "random_flip", "normalize")),
            *("DATALOADER.TRAIN_X.BATCH_SIZE", 4, "DATALOADER.TEST.BATCH_SIZE", 5),
            *("OPTIM.NAME", "sgd", "OPTIM.LR", 0.005, "OPTIM.MAX_EPOCH", 3),
            *("OPTIM.LR_SCHEDULER", "cosine", "OPTIM.WARMUP_EPOCH", 1),
            *("OPTIM.WARMUP_TYPE", "constant"),
            *options,
        ]
    )
    return cfg
