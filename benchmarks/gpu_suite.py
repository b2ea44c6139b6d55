"""The eleven data sets' numbers of JPEGs, drawn here, and a model trained and tested on each."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

import datasets  # noqa: F401  (its modules register the data sets)
from dassl.config import CfgNode, get_cfg_default
from dassl.data.datasets import DATASET_REGISTRY
from dassl.engine import TRAINER_REGISTRY
from dassl.utils import UserError
from experiments.protocols import PROTOCOLS

from .hours import JPEG
from .method_setup import Settings, method_names

REPO = Path(__file__).resolve().parents[1]
SHOTS = 16
DISTINCT = 64  # pictures that the files of a set are links to: as slow to decode, less to draw


def suite(args: argparse.Namespace) -> dict[str, Any]:
    """Train and test the first method on each data set; one that fails has its error as remark."""
    method_names()
    name = (args.methods or ["DePT_CoOp"])[0]
    rows = []
    with tempfile.TemporaryDirectory(prefix="suite-", dir=args.output) as folder:
        backbone = Path(folder) / "backbone.pt"
        model = Settings("", "tiny" if args.cpu else "ViT-B/16").model().half().cpu()
        torch.save(model.state_dict(), backbone)
        pictures = draw_pictures(Path(folder) / "pictures", 2 if args.cpu else DISTINCT)
        for data_set in args.datasets or PROTOCOLS["base_to_new"].datasets:
            row: dict[str, Any] = {"data_set": data_set, **sizes_of(data_set, small=args.cpu)}
            root = Path(folder) / data_set
            fill(root, row["classes"], row["training"], row["tested"], pictures)
            try:
                row |= run(args, name, root, backbone, Path(folder) / f"{data_set}-runs")
            except UserError as error:
                row["remark"] = str(error)
            rows.append(row)
            print(row, flush=True)
    return {"method": name, "data_sets": rows}


def sizes_of(data_set: str, small: bool = False) -> dict[str, int]:
    """Classes, few-shot training images and test images of a file of configs/datasets.

    Raises UserError where its reader states none.
    """
    cfg: CfgNode = get_cfg_default()
    cfg.merge_from_file(REPO / "configs" / "datasets" / f"{data_set}.yaml")
    found = getattr(DATASET_REGISTRY.get(cfg.DATASET.NAME), "sizes", None)
    if not found:
        raise UserError(f"{data_set} doesn't state its sizes")
    classes, _, _, tested = (4, 0, 0, 8) if small else found
    return {"classes": classes, "training": classes * (2 if small else SHOTS), "tested": tested}


def draw_pictures(folder: Path, number: int) -> list[Path]:
    """JPEGs of a usual photo's size and of many frequencies."""
    folder.mkdir()
    noise = np.random.default_rng(0)
    paths = []
    for i in range(number):
        coarse = Image.fromarray(noise.integers(0, 256, (24, 32, 3), dtype=np.uint8))
        smooth = np.asarray(coarse.resize(JPEG, Image.Resampling.BICUBIC), dtype=np.int16)
        pixels = (smooth + noise.integers(-12, 13, smooth.shape)).clip(0, 255).astype(np.uint8)
        paths.append(folder / f"{i}.jpg")
        Image.fromarray(pixels).save(paths[-1], quality=90)
    return paths


def fill(root: Path, classes: int, training: int, tested: int, pictures: list[Path]) -> None:
    """Make train/ and test/ with a folder per class, of hard links to the pictures."""
    for part, number in (("train", training), ("test", tested)):
        for c in range(classes):
            (root / part / f"thing {c:04d}").mkdir(parents=True)
        for i in range(number):
            place = root / part / f"thing {i % classes:04d}" / f"{i}.jpg"
            os.link(pictures[i % len(pictures)], place)


def run(args: argparse.Namespace, name: str, root: Path, backbone: Path, output: Path) -> dict:
    """Seconds of training on the base classes with their test, and of the test on the new ones.

    Raises UserError where train.py fails.
    """
    config = "mini" if args.cpu else TRAINER_REGISTRY.get(name).usual_config
    common = [
        *("--trainer", name, "--root", str(root), "--backbone", str(backbone), "--seed", "1"),
        *("--dataset-config-file", "configs/datasets/image_folder.yaml"),
        *("--config-file", f"configs/trainers/{name}/{config}.yaml"),
    ]
    options = ["DATASET.NUM_SHOTS", "2" if args.cpu else str(SHOTS)]
    if args.cpu:
        options += ["INPUT.SIZE", "(48, 48)", "OPTIM.MAX_EPOCH", "1"]
    base, new = (str((output / part).resolve()) for part in ("base", "new"))
    trained = _clocked([*common, "--output-dir", base], [*options, *_half("base")])
    test = [*common, "--output-dir", new, "--eval-only", "--model-dir", base]
    return {"base_s": trained, "new_s": _clocked(test, [*options, *_half("new")])}


def _half(classes: str) -> list[str]:
    return ["DATASET.SUBSAMPLE_CLASSES", classes]


def _clocked(words: list[str], options: list[str]) -> float:
    started = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "train.py", *words, *options], cwd=REPO, capture_output=True, text=True
    )
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise UserError(f"train.py ended with status {done.returncode}: {last}")
    return time.perf_counter() - started
