"""Build any registered trainer on the tiny CLIP and the folder of tiny pictures."""

from __future__ import annotations

import pytest

import train
from dassl.engine import build_trainer

# Depths that fit the tiny CLIP's three layers, and nothing random in the views.
OPTIONS = {
    "INPUT.SIZE": "(32, 32)",
    "INPUT.INTERPOLATION": "bicubic",
    "INPUT.TRANSFORMS": "('center_crop', 'normalize')",
    "DATALOADER.TRAIN_X.BATCH_SIZE": 4,
    "DATALOADER.TEST.BATCH_SIZE": 7,
    "DATALOADER.NUM_WORKERS": 0,
    "DATASET.NAME": "ImageFolder",
    "DATASET.NUM_SHOTS": 2,
    "OPTIM.NAME": "sgd",
    "OPTIM.LR": 0.0035,
    "OPTIM.MAX_EPOCH": 2,
    "OPTIM.LR_SCHEDULER": "cosine",
    "OPTIM.WARMUP_EPOCH": 1,
    "OPTIM.WARMUP_TYPE": "constant",
    "OPTIM.WARMUP_CONS_LR": 1e-5,
    "TRAINER.COOP.N_CTX": 4,
    "TRAINER.COOP.PREC": "fp32",
    "TRAINER.COCOOP.PREC": "fp32",
    "TRAINER.MAPLE.PREC": "fp32",
    "TRAINER.MAPLE.PROMPT_DEPTH": 3,
    "TRAINER.VPT.PREC": "fp32",
    "TRAINER.VPT.PROMPT_DEPTH_VISION": 3,
    "TRAINER.CLIP_ADAPTER.PREC": "fp32",
    "TRAINER.PROMPTSRC.PREC": "fp32",
    "TRAINER.PROMPTSRC.PROMPT_DEPTH_VISION": 3,
    "TRAINER.PROMPTSRC.PROMPT_DEPTH_TEXT": 2,
    "TRAINER.PROMPTSRC.GPA_MEAN": 1.5,
    "TRAINER.ZEROSHOT.PREC": "fp32",
}


def arguments(trainer: str, root, backbone, output, *extra: str, **options) -> list[str]:
    """A command line for train.py. Options' dots are written as double underscores."""
    options = {**OPTIONS, **{k.replace("__", "."): v for k, v in options.items()}}
    pairs = [str(word) for pair in options.items() for word in pair]
    return [
        *("--trainer", trainer, "--root", str(root), "--backbone", str(backbone)),
        *("--output-dir", str(output), "--seed", "1", *extra, *pairs),
    ]


@pytest.fixture
def command(picture_root, backbone, tmp_path):
    """command(trainer, …) → the arguments of a run in tmp_path/run."""

    def build(trainer: str, *extra: str, output=None, **options) -> list[str]:
        output = output or tmp_path / "run"
        return arguments(trainer, picture_root, backbone, output, *extra, **options)

    return build


@pytest.fixture
def make_trainer(command):
    """make_trainer(trainer, …) → the built trainer."""

    def build(trainer: str, **options):
        cfg = train.setup_cfg(train.parse_args(command(trainer, **options)))
        import datasets  # noqa: F401
        from dassl.utils import set_random_seed

        set_random_seed(cfg.SEED)
        return build_trainer(cfg)

    return build
