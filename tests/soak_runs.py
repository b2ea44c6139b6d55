"""The runs of `soak.py`: train.py in forked processes, what they leave, how that is compared."""

from __future__ import annotations

import json
import os
import resource
import select
import signal
import sys
import threading
import time
import traceback
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
import torch.utils.tensorboard
from PIL import Image

import datasets  # noqa: F401
import train
from dassl.utils import GOES_ON, heed_signals, user_errors
from dassl.utils.tensor_files import read_tensors
from tests.conftest import CLASSES, arguments, tiny_clip

EPOCHS = 3
OPTIONS = {"DATASET.SUBSAMPLE_CLASSES": "base", "OPTIM.MAX_EPOCH": EPOCHS, "DATASET.NUM_SHOTS": 4}
SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT)
FINISHED, MISTAKE, NO_ROOM, CRASHED = 0, 2, 1, 99  # exit statuses
EXPECTED = {signal.SIGKILL: -signal.SIGKILL, signal.SIGTERM: 143, signal.SIGINT: 130}
LONGEST = 300  # seconds a run may take before it counts as stuck
# Files in which a flipped bit is told from the content, or harms nothing.
CHECKED = ("model.pth.tar", "resume", "tiny.pt", "features")


@dataclass(frozen=True)
class Case:
    """A trainer, and how many seeds of it are trained side by side."""

    trainer: str
    seeds: int = 1

    def words(self, world: World, output: Path, *extra: str) -> list[str]:
        words = arguments(self.trainer, world.root, world.backbone, output, *extra, **OPTIONS)
        if self.seeds > 1:
            words += ["--seed", *map(str, range(1, self.seeds + 1))]
        return words

    def folders(self, output: Path) -> list[Path]:
        if self.seeds == 1:
            return [output]
        return [output / f"seed{seed}" for seed in range(1, self.seeds + 1)]


@dataclass
class Ended:
    """How a process ended: exit status (negative: the signal), and what it printed."""

    status: int
    text: str
    seconds: float

    @property
    def told(self) -> str:
        lines = [line for line in self.text.splitlines() if line.strip()]
        return lines[-1] if lines else ""


class ForkedRun:
    """`train.py WORDS` in a forked process, whose output is read here."""

    def __init__(self, words: list[str], full_after: tuple[float, int] | None = None) -> None:
        sys.stdout.flush()
        self.started = time.monotonic()
        self.output, theirs = os.pipe()
        # What Python does at a fork loses a signal that falls there.
        signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS[1:])
        self.pid = os.fork()
        if not self.pid:
            os.close(self.output)
            _be_the_run(words, theirs, full_after)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS[1:])
        os.close(theirs)
        os.set_blocking(self.output, False)
        self.text = b""
        self.ended: Ended | None = None

    def wait(self, seconds: float = LONGEST) -> Ended | None:
        """Return how it ended, or None if it hasn't after so many seconds."""
        until = time.monotonic() + seconds
        while self.ended is None:
            left = until - time.monotonic()
            select.select([self.output], [], [], max(0.0, min(left, 0.02)))
            self._read()
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self._read()
                os.close(self.output)
                spent = time.monotonic() - self.started
                text = self.text.decode("utf-8", "replace")
                self.ended = Ended(os.waitstatus_to_exitcode(status), text, spent)
            elif left <= 0:
                break
        return self.ended

    def _read(self) -> None:
        try:
            while chunk := os.read(self.output, 1 << 16):
                self.text += chunk
        except BlockingIOError:
            pass

    def end(self, by: signal.Signals) -> Ended:
        """Send it a signal, and see it end."""
        os.kill(self.pid, by)
        return self.wait() or Failure.stuck(self)


def _be_the_run(words: list[str], output: int, full_after: tuple[float, int] | None) -> None:
    """What train.py does at its end, in this forked process, which ends here."""
    status = CRASHED
    try:
        os.dup2(output, 1)
        os.dup2(output, 2)
        sys.stdout, sys.stderr = os.fdopen(1, "w"), os.fdopen(2, "w")
        if full_after is not None:
            seconds, size = full_after
            limits = size, resource.getrlimit(resource.RLIMIT_FSIZE)[1]
            fill = threading.Timer(seconds, resource.setrlimit, (resource.RLIMIT_FSIZE, limits))
            fill.daemon = True
            fill.start()
        with user_errors(f"interrupted; {GOES_ON}"):
            heed_signals()
            signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS[1:])
            train.main(words)
        status = FINISHED
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else CRASHED
    except BaseException:
        traceback.print_exc()
    finally:
        try:
            sys.stdout.flush()
            sys.stderr.flush()
        finally:
            os._exit(status)


class Failure(Exception):
    """A trial did not end as it should; its text says how."""

    @classmethod
    def stuck(cls, run: ForkedRun) -> Ended:
        os.kill(run.pid, signal.SIGKILL)
        raise cls(f"stuck:\n{run.text.decode('utf-8', 'replace')[-2000:]}")


# ------------------------------------------------------------ what a run leaves


def outcome(folder: Path) -> dict:
    """What a run is compared by: everything but its seconds, and what machines give it."""
    result = json.loads((folder / "result.json").read_text())
    metrics = folder / "metrics.jsonl"
    lines = metrics.read_text().splitlines() if metrics.exists() else []
    files = {
        path.name: read_tensors(path)
        for path in folder.rglob(f"model.pth.tar-{EPOCHS}")
        if path.is_file()
    }
    return {
        "accuracy": (result["accuracy"], result["macro_f1"]),
        "epochs": [{k: v for k, v in json.loads(x).items() if k != "seconds"} for x in lines],
        "models": {n: {k: c[k] for k in ("state_dict", "optimizer")} for n, c in files.items()},
    }


def same(one: object, two: object) -> bool:
    """Whether two nested values are equal, their tensors bit by bit."""
    if isinstance(one, torch.Tensor):
        return torch.is_tensor(two) and one.dtype == two.dtype and torch.equal(one, two)
    if isinstance(one, dict):
        return (
            isinstance(two, dict)
            and one.keys() == two.keys()
            and all(same(value, two[key]) for key, value in one.items())
        )
    if isinstance(one, (list, tuple)):
        return len(one) == len(two) and all(map(same, one, two))
    return one == two


@dataclass
class World:
    """Pictures, a tiny backbone, and the uninterrupted runs on them."""

    folder: Path
    counts: Counter = field(default_factory=Counter)

    def __post_init__(self) -> None:
        self.root, self.backbone = self.folder / "pictures", self.folder / "tiny.pt"
        self._whole: dict[Case, tuple[list[dict], float]] = {}
        state = {k: v.half() for k, v in tiny_clip().state_dict().items()}
        torch.save(state, self.backbone)
        noise = np.random.default_rng(0)
        for name in CLASSES:
            (self.root / name).mkdir(parents=True)
            for i in range(10):
                pixels = noise.integers(0, 256, (40, 40, 3)).astype(np.uint8)
                Image.fromarray(pixels).save(self.root / name / f"{i}.png")

    def whole(self, case: Case) -> tuple[list[dict], float]:
        """The outcomes of the case's uninterrupted run, and its seconds."""
        if case not in self._whole:
            output = self.folder / "whole" / f"{case.trainer}_{case.seeds}"
            ended = finished(ForkedRun(case.words(self, output, "--no-cache")))
            self._whole[case] = [outcome(f) for f in case.folders(output)], ended.seconds
        return self._whole[case]

    def check(self, case: Case, output: Path) -> None:
        """Raise Failure unless the run in `output` is what the uninterrupted one is."""
        for one, two in zip(map(outcome, case.folders(output)), self.whole(case)[0], strict=True):
            for what, value in two.items():
                if not same(value, one[what]):
                    raise Failure(f"other {what} than the uninterrupted run's")


def finished(run: ForkedRun) -> Ended:
    """Raise Failure unless the run ends well."""
    ended = run.wait() or Failure.stuck(run)
    if ended.status != FINISHED:
        raise Failure(f"status {ended.status}:\n{ended.text[-2000:]}")
    return ended
