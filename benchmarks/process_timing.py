"""Whole runs of train.py on the mini world, in processes of their own."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import tempfile
import time
from functools import cache
from pathlib import Path

from benchmarks.timing import Time, median
from dassl.utils import UserError

ROOT = Path(__file__).resolve().parents[1]


def _python(*arguments: str) -> Time:
    """What `python arguments` takes, from its start to its end."""
    started, used = time.perf_counter(), _children()
    done = subprocess.run(
        [sys.executable, *arguments], cwd=ROOT, capture_output=True, text=True, check=False
    )
    taken = Time(time.perf_counter() - started, _children() - used)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise UserError(f"python {' '.join(arguments)} failed: {last}")
    return taken


def _children() -> float:
    """CPU seconds of the processes that this one started, and that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


@cache
def _folder() -> tempfile.TemporaryDirectory:
    """Where the mini world lies, until this process ends."""
    return tempfile.TemporaryDirectory(prefix="benchmark-")


def _train(
    trainer: str,
    fast: bool,
    *pairs: object,
    options: tuple[str, ...] = (),
    seeds: tuple[int, ...] = (1,),
) -> Time:
    """Times of one call of train.py in a fresh folder."""
    with tempfile.TemporaryDirectory(dir=_folder().name) as output:
        return _python(
            *("train.py", "--trainer", trainer, "--seed", *map(str, seeds), *options),
            *("--root", os.path.join(_folder().name, "data"), "--output-dir", output),
            *("--dataset-config-file", "configs/datasets/mini_shapes.yaml"),
            *("--config-file", f"configs/trainers/{trainer}/mini.yaml"),
            *("--no-cache", "MODEL.FAST", str(fast)),
            *("DATASET.SUBSAMPLE_CLASSES", "base", *(str(word) for word in pairs)),
        )


def mini_run(trainer: str, epochs: int = 2, repeats: int = 1) -> tuple[Time, Time]:
    """Median times of a training run with its test, plain and fast, in turns."""
    _train(trainer, True, options=("--no-train",))  # the world is drawn, files are read once
    times: dict[bool, list[Time]] = {False: [], True: []}
    for _ in range(repeats):
        for fast, taken in times.items():
            pairs = ("DATASET.NUM_SHOTS", 16, "OPTIM.MAX_EPOCH", epochs)
            taken.append(_train(trainer, fast, *pairs))
    return median(times[False]), median(times[True])


def seeds_together(trainer: str, seeds: int = 3, epochs: int = 2) -> tuple[Time, Time]:
    """Times of training runs that differ in seed, one after the other and side by side."""
    pairs = ("DATASET.NUM_SHOTS", 16, "OPTIM.MAX_EPOCH", epochs)
    numbers = tuple(range(1, seeds + 1))
    apart = [_train(trainer, True, *pairs, seeds=(seed,)) for seed in numbers]
    return Time(*map(sum, zip(*apart, strict=True))), _train(trainer, True, *pairs, seeds=numbers)


def start_up(repeats: int = 3) -> dict[str, Time]:
    """Median times of `train.py --help`, and of a run that ends after its first step."""
    first_step = ("DATASET.NUM_SHOTS", 1, "OPTIM.MAX_EPOCH", 1, "TEST.NO_TEST", True)
    batch = ("DATALOADER.TRAIN_X.BATCH_SIZE", 1000)  # one batch is the whole epoch
    _train("CoOp", True, options=("--no-train",))
    calls = {
        "train.py --help": lambda: _python("train.py", "--help"),
        "first step": lambda: _train("CoOp", True, *first_step, *batch),
    }
    return {name: median(call() for _ in range(repeats)) for name, call in calls.items()}
