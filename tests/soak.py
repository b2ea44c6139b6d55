"""Kill runs, flip bits of their files, fill their disk: at the end they are as if nothing had been.

    python tests/soak.py --minutes 8
    python tests/soak.py --number 500 --seed 3

Each trial draws its trainer (all of the registry, in turn), one seed or two side by side, and what
happens to the run, from its number alone; when a signal falls is a moment of the clock. Its
parameters, optimizer, losses and accuracy are compared bit by bit with the uninterrupted run's.

    kill      SIGKILL, SIGTERM or SIGINT at up to three moments, each time the same command again
    disk      every file is full at some size, from some moment on; then there is room again
    together  two runs that need the same image features at once, one of them killed
    flip      one bit of one file; a file with a checksum is refused or changes nothing
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import select
import shutil
import signal
import sys
import tempfile
import threading
import time
import traceback
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # a process is forked per run: no threads before
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import torch
import torch.utils.tensorboard
from PIL import Image

import datasets  # noqa: F401
import train
import trainers
from dassl.engine import TRAINER_REGISTRY
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


class Run:
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
    def stuck(cls, run: Run) -> Ended:
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
            ended = finished(Run(case.words(self, output, "--no-cache")))
            self._whole[case] = [outcome(f) for f in case.folders(output)], ended.seconds
        return self._whole[case]

    def check(self, case: Case, output: Path) -> None:
        """Raise Failure unless the run in `output` is what the uninterrupted one is."""
        for one, two in zip(map(outcome, case.folders(output)), self.whole(case)[0], strict=True):
            for what, value in two.items():
                if not same(value, one[what]):
                    raise Failure(f"other {what} than the uninterrupted run's")


def finished(run: Run) -> Ended:
    """Raise Failure unless the run ends well."""
    ended = run.wait() or Failure.stuck(run)
    if ended.status != FINISHED:
        raise Failure(f"status {ended.status}:\n{ended.text[-2000:]}")
    return ended


# ------------------------------------------------------------ trials


def kill(world: World, case: Case, output: Path, rng: random.Random) -> str:
    """Some signals, each at a moment of its own, then to the end."""
    words = case.words(world, output)
    _, seconds = world.whole(case)
    if rng.random() < 0.15:
        words += ["DATALOADER.NUM_WORKERS", "1"]
    for _ in range(rng.randint(1, 3)):
        by = rng.choice(SIGNALS)
        run = Run(words)
        if run.wait(rng.uniform(0, seconds)) is not None:
            break  # it was faster
        ended = run.end(by)
        if ended.status not in (EXPECTED[by], FINISHED):  # it may just have been done
            raise Failure(f"{by.name}: status {ended.status}:\n{ended.text[-2000:]}")
        if "Traceback" in ended.text:
            raise Failure(f"{by.name}: a traceback:\n{ended.text[-2000:]}")
        world.counts[by.name] += 1
    finished(Run(words))
    world.check(case, output)
    return "identical"


def disk(world: World, case: Case, output: Path, rng: random.Random) -> str:
    """A full disk from some moment on, then room again."""
    words = case.words(world, output)
    _, seconds = world.whole(case)
    size = rng.choice((0, 0, 100, 4096, 1 << 14, 1 << 17))
    run = Run(words, full_after=(rng.uniform(0, seconds), size))
    ended = run.wait() or Failure.stuck(run)
    # Perhaps behind a line of the log that had no room for its end.
    one_line = "error: cannot write " in ended.told and "Traceback" not in ended.text
    if ended.status not in (FINISHED, NO_ROOM) or (ended.status == NO_ROOM and not one_line):
        raise Failure(f"full: status {ended.status}:\n{ended.text[-2000:]}")
    world.counts["disk stopped it"] += ended.status == NO_ROOM
    finished(Run(words))
    world.check(case, output)
    return "identical"


def together(world: World, case: Case, output: Path, rng: random.Random) -> str:
    """Two at once with no features yet; one is killed, the other must not wait for ever."""
    shutil.rmtree(world.root / ".cache", ignore_errors=True)
    outputs = [output / name for name in ("killed", "left")]
    runs = [Run(case.words(world, each)) for each in outputs]
    if runs[0].wait(rng.uniform(0, 2 * world.whole(case)[1])) is None:
        runs[0].end(signal.SIGKILL)
    finished(runs[1])
    finished(Run(case.words(world, outputs[0])))
    for each in outputs:
        world.check(case, each)
    return "identical"


def flip(world: World, case: Case, output: Path, rng: random.Random) -> str:
    """One bit of a file of an unfinished or a finished run, or of what it reads."""
    case = Case(case.trainer)
    own = World.__new__(World)
    own.__dict__.update(world.__dict__)
    own.root, own.backbone = output / "pictures", output / "tiny.pt"
    shutil.copytree(world.root, own.root)
    shutil.copy(world.backbone, own.backbone)
    folder = output / "run"
    words = case.words(own, folder)
    run = Run(words)
    if rng.random() < 0.5 and run.wait(rng.uniform(0.3, 1) * world.whole(case)[1]) is None:
        run.end(signal.SIGTERM)
    else:
        finished(run)
    # Every kind of file has its turn, however many files it has.
    kinds: dict[str, list[Path]] = {}
    for path in sorted(path for path in output.rglob("*") if path.is_file()):
        if path.stat().st_size and not path.name.startswith(("events", ".lock", "log.txt")):
            kinds.setdefault(kind_of(path), []).append(path)
    checked = sorted(set(kinds).intersection(CHECKED))
    kind = rng.choice(checked if rng.random() < 0.6 else sorted(kinds))
    path = rng.choice(kinds[kind])
    content = bytearray(path.read_bytes())
    content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    path.write_bytes(content)
    if kind == "model.pth.tar":
        words = case.words(own, output / "test", "--eval-only", "--model-dir", str(folder))
    ended = (run := Run(words)).wait() or Failure.stuck(run)
    world.counts[f"flip in {kind}"] += 1
    if ended.status == MISTAKE and ended.told.startswith("error: "):
        return "refused"
    if ended.status != FINISHED:
        raise Failure(f"{path.name}: status {ended.status}:\n{ended.text[-2000:]}")
    if kind == "model.pth.tar":
        ours, theirs = outcome(output / "test"), outcome(folder)
        whole = same(ours["accuracy"], theirs["accuracy"])
    else:
        try:
            world.check(case, folder)
            whole = True
        except (Failure, OSError, ValueError, LookupError):
            whole = False
    if whole:
        return "identical"
    if kind in CHECKED:
        raise Failure(f"{path.name}: another result, and nothing said")
    world.counts[f"another result by {kind}"] += 1
    return "another, unchecked"


def kind_of(path: Path) -> str:
    """What sort of file it is."""
    if len(path.stem) == 64:  # kept below a digest
        return path.parent.name
    if path.name.startswith("shot_"):
        return "few-shot sample"
    for kind in ("model.pth.tar", "resume"):
        if kind in path.name:
            return kind
    return "image" if path.suffix == ".png" else path.name


TRIALS = {kill: 5, disk: 2, together: 1, flip: 3}  # how often each


def trial(
    world: World, number: int, seed: int, names: list[str], only: str | None
) -> tuple[str, str]:
    """Do one; return its name, and how it ended. Raises Failure."""
    rng = random.Random(f"{seed} {number}")
    do = rng.choices(list(TRIALS), TRIALS.values())[0]
    do = next((each for each in TRIALS if each.__name__ == only), do)
    name = names[number % len(names)]
    may_differ = getattr(TRAINER_REGISTRY.get(name), "may_differ", ())
    case = Case(name, seeds=2 if may_differ and rng.random() < 0.3 else 1)
    output = world.folder / f"trial{number}"
    try:
        ended = do(world, case, output, rng)
        world.counts["seeds side by side"] += case.seeds > 1
    except Failure as failure:
        raise Failure(f"{do.__name__} {case.trainer} × {case.seeds}: {failure}") from None
    finally:
        shutil.rmtree(output, ignore_errors=True)
    return do.__name__, ended


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, help="how long")
    parser.add_argument("--number", type=int, help="how many trials (100, without --minutes)")
    parser.add_argument("--seed", type=int, default=0, help="of what is drawn (0)")
    parser.add_argument("--first", type=int, default=0, help="number of the first trial (0)")
    parser.add_argument("--only", choices=[each.__name__ for each in TRIALS], help="of the kinds")
    args = parser.parse_args()
    if args.minutes is None and args.number is None:
        args.number = 100
    torch.set_num_threads(1)
    trainers.modules()
    names = sorted(TRAINER_REGISTRY.registered_names())
    ends: Counter = Counter()
    failures = []
    started, number = time.monotonic(), args.first
    with tempfile.TemporaryDirectory() as folder:
        world = World(Path(folder))
        while args.number is None or number < args.first + args.number:
            if args.minutes is not None and time.monotonic() - started > 60 * args.minutes:
                break
            try:
                ends[trial(world, number, args.seed, names, args.only)] += 1
            except Failure as failure:
                failures.append(f"trial {number}: {failure}")
                print(failures[-1], flush=True)
            except KeyboardInterrupt:
                break
            number += 1
    for (name, ended), count in sorted(ends.items()):
        print(f"{name:<9} {count:>5} {ended}")
    for what, count in sorted(world.counts.items()):
        print(f"          {count:>5} {what}")
    done, minutes = number - args.first, (time.monotonic() - started) / 60
    print(
        f"{done} trials over {min(done, len(names))} trainers in {minutes:.1f} minutes, "
        f"seed {args.seed}: {len(failures)} failures"
    )
    return bool(failures)


if __name__ == "__main__":
    raise SystemExit(main())
