"""Kill runs, flip bits of their files, fill their disk: at the end they are as if nothing had been.

    python tests/soak.py --minutes 8
    python tests/soak.py --number 500 --seed 3

Each trial draws its trainer (all of the registry, in turn), one seed or two side by side, and what
happens to the run, from its number alone; when a signal falls is a moment of the clock. Its
parameters, optimizer, losses and accuracy are compared bit by bit with the uninterrupted run's.

    kill      SIGKILL, SIGTERM or SIGINT at up to three moments, each time the same command again
    disk      every file is full at some size, from some moment on; then there is room again
    together  two runs that need the same image features at once, one of them killed
    workers   two runs at once in workers, one of which is killed: it alone is tried again
    flip      one bit of one file; a file with a checksum is refused or changes nothing
"""

from __future__ import annotations

import argparse
import io
import os
import random
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import closing, redirect_stdout
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # a process is forked per run: no threads before
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch

import trainers
from dassl.engine import TRAINER_REGISTRY
from experiments.chains import Chain, Job
from experiments.launch import WARM
from experiments.processes import RunnerSettings
from experiments.runner import run_chain
from experiments.workers import Workers
from tests.soak_runs import (
    CHECKED,
    EXPECTED,
    FINISHED,
    LONGEST,
    MISTAKE,
    NO_ROOM,
    SIGNALS,
    Case,
    Failure,
    ForkedRun,
    World,
    finished,
    outcome,
    same,
)

# ------------------------------------------------------------ trials


def kill(world: World, case: Case, output: Path, rng: random.Random) -> str:
    """Some signals, each at a moment of its own, then to the end."""
    words = case.words(world, output)
    _, seconds = world.whole(case)
    if rng.random() < 0.15:
        words += ["DATALOADER.NUM_WORKERS", "1"]
    for _ in range(rng.randint(1, 3)):
        by = rng.choice(SIGNALS)
        run = ForkedRun(words)
        if run.wait(rng.uniform(0, seconds)) is not None:
            break  # it was faster
        ended = run.end(by)
        if ended.status not in (EXPECTED[by], FINISHED):  # it may just have been done
            raise Failure(f"{by.name}: status {ended.status}:\n{ended.text[-2000:]}")
        if "Traceback" in ended.text:
            raise Failure(f"{by.name}: a traceback:\n{ended.text[-2000:]}")
        world.counts[by.name] += 1
    finished(ForkedRun(words))
    world.check(case, output)
    return "identical"


def disk(world: World, case: Case, output: Path, rng: random.Random) -> str:
    """A full disk from some moment on, then room again."""
    words = case.words(world, output)
    _, seconds = world.whole(case)
    size = rng.choice((0, 0, 100, 4096, 1 << 14, 1 << 17))
    run = ForkedRun(words, full_after=(rng.uniform(0, seconds), size))
    ended = run.wait() or Failure.stuck(run)
    # Perhaps behind a line of the log that had no room for its end.
    one_line = "error: cannot write " in ended.told and "Traceback" not in ended.text
    if ended.status not in (FINISHED, NO_ROOM) or (ended.status == NO_ROOM and not one_line):
        raise Failure(f"full: status {ended.status}:\n{ended.text[-2000:]}")
    world.counts["disk stopped it"] += ended.status == NO_ROOM
    finished(ForkedRun(words))
    world.check(case, output)
    return "identical"


def together(world: World, case: Case, output: Path, rng: random.Random) -> str:
    """Two at once with no features yet; one is killed, the other must not wait for ever."""
    shutil.rmtree(world.root / ".cache", ignore_errors=True)
    outputs = [output / name for name in ("killed", "left")]
    runs = [ForkedRun(case.words(world, each)) for each in outputs]
    if runs[0].wait(rng.uniform(0, 2 * world.whole(case)[1])) is None:
        runs[0].end(signal.SIGKILL)
    finished(runs[1])
    finished(ForkedRun(case.words(world, outputs[0])))
    for each in outputs:
        world.check(case, each)
    return "identical"


def workers(world: World, case: Case, output: Path, rng: random.Random) -> str:
    """Two runs at once in forks of one process, one of which is killed at some moment."""
    case = Case(case.trainer)
    seconds = world.whole(case)[1]
    jobs = [Job(output / name, tuple(case.words(world, output / name))) for name in ("one", "two")]
    settings, printed = RunnerSettings(warm=WARM), io.StringIO()
    environment = {"OMP_NUM_THREADS": "1"}
    with closing(Workers(settings, environment)) as processes, ThreadPoolExecutor(2) as pool:
        # The kill's moment counts from when they are born.
        told = threading.Semaphore(0)
        born, processes.prepare = processes.prepare, lambda: (born(), told.release())[0]
        with redirect_stdout(printed):
            chains = [Chain(job.folder.name, (job,)) for job in jobs]
            ends = [pool.submit(run_chain, c, settings, environment, processes) for c in chains]
            for _ in jobs:
                told.acquire(timeout=LONGEST)
            wait(ends, rng.uniform(0, 2 * seconds))
            going = sorted(each.process for each in processes._all)
            if going and not all(end.done() for end in ends):
                os.kill(rng.choice(going), signal.SIGKILL)
                world.counts["workers killed"] += 1
            outcomes = [end.result(LONGEST)[0] for end in ends]
    states = [each.state for each in outcomes]
    if states != ["done", "done"]:
        raise Failure(f"{states}: {[each.reason for each in outcomes]}")
    tried_again = printed.getvalue().count("trying again")
    if tried_again > 1:
        raise Failure(f"more than one was tried again:\n{printed.getvalue()}")
    world.counts["tried again"] += tried_again
    for job in jobs:
        world.check(case, job.folder)
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
    run = ForkedRun(words)
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
    ended = (run := ForkedRun(words)).wait() or Failure.stuck(run)
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


TRIALS = {kill: 5, disk: 2, together: 1, workers: 1, flip: 3}  # how often each


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
        alone = do in (flip, workers)
        world.counts["seeds side by side"] += case.seeds > 1 and not alone
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
