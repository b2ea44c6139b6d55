#!/usr/bin/env python3
"""Break one line at a time and see whether a test notices; print what survives.

    python tests/mutate.py --list
    python tests/mutate.py --sample 40 --seed 1
    python tests/mutate.py --files trainers/dept.py clip/prompting/text.py
    python tests/mutate.py --named

Breakages are made from the syntax tree (numbers, comparisons, signs, slices, dropped statements and
calls, swapped arguments, words) and from `named_breakages.py`, a list of those that matter most.
They are made in a temporary copy; the tree itself is left alone. For each, only the tests that are
likely to notice run, up to the first that fails. Exit status: 0 if all were noticed, else 1.
"""

from __future__ import annotations

import argparse
import compileall
import os
import random
import re
import shutil
import signal
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from py_compile import PycInvalidationMode

from breakages import Mutant, mutants_of, named_mutants

ROOT = Path(__file__).resolve().parents[1]

NO_TESTS = 5  # pytest's exit status if none is chosen

# What is broken, if nothing is said.
SCOPE = (
    *("trainers", "tuning", "clip/prompting", "datasets", "experiments/results"),
    *("experiments/protocols.py", "dassl/optim", "dassl/evaluation", "dassl/metrics"),
    *("dassl/data/transforms", "dassl/data/samplers.py"),
)
# The tests that are likely to notice, quick ones first: of the first pattern that matches the
# file. What isn't there is left out, so that files may move.
NUMBERS = ("tests/test_numbers_of_methods.py", "tests/trainers/test_parts_of_methods.py")
EQUATIONS = "tests/trainers/test_against_equations.py"
TRAINERS = (
    *("tests/trainers/test_dept.py", *NUMBERS, EQUATIONS, "tests/test_train.py"),
    "tests/trainers/test_contract.py",
)
TESTS: tuple[tuple[str, tuple[str, ...]], ...] = (
    (r"^tuning/(\w+)", ("tests/tuning/test_{}.py", *TRAINERS)),
    (r"^trainers/", TRAINERS),
    (r"^clip/", ("tests/clip/test_layout.py", "tests/clip", *NUMBERS, EQUATIONS)),
    (r"^mini_world/", ("tests/mini_world",)),
    (
        r"^datasets/preparation/(\w+)",
        (
            *("tests/datasets/preparation/test_{}.py", "tests/datasets/test_names_and_shares.py"),
            "tests/datasets/preparation",
        ),
    ),
    (
        r"^datasets/(\w+)",
        (
            *("tests/datasets/test_{}.py", "tests/datasets/test_names_and_shares.py"),
            *("tests/datasets/test_readers.py", "tests/datasets/test_fewshot.py"),
            *("tests/datasets/test_image_folder.py", "tests/datasets/preparation"),
        ),
    ),
    (
        r"^dassl/optim/",
        (
            *("tests/dassl/optim", "tests/dassl/engine/test_trainer.py", *NUMBERS[:1]),
            "tests/dassl/engine/test_resume.py",
        ),
    ),
    (r"^dassl/(data|evaluation|metrics)/", ("tests/dassl/{}",)),
    (r"^dassl/", ("tests/dassl",)),
    (
        r"^experiments/results/",
        (
            *("tests/experiments/results/test_tables.py", "tests/experiments/results"),
            *("tests/experiments/test_protocols.py", "tests/test_numbers_of_methods.py"),
        ),
    ),
    (r"^experiments/(\w+)", ("tests/experiments/test_{}.py", *NUMBERS[:1])),
)


def tests_for(root: Path, file: str) -> list[str]:
    """The tests that are likely to notice a breakage of this file."""
    for pattern, tests in TESTS:
        if match := re.search(pattern, file):
            paths = [test.format(*match.groups()) for test in tests]
            return [path for path in dict.fromkeys(paths) if (root / path).exists()]
    return ["tests"]


def survives(copy: Path, file: str, log: Path, limit: float) -> bool:
    """Whether all tests pass; those that are named after the file go first."""
    tests = tests_for(copy, file)
    named = Path(file).stem.replace("_", "")
    return runs_green(copy, ["-k", named, *tests], log, limit) and runs_green(
        copy, tests, log, limit
    )


def runs_green(copy: Path, tests: list[str], log: Path, limit: float) -> bool:
    """Run tests in a fork of this process, which has the heavy imports already."""
    child = os.fork()
    if child == 0:
        _run_tests(copy, tests, log)
    end = time.monotonic() + limit
    done = 0
    try:
        while not done and time.monotonic() < end:
            done, status = os.waitpid(child, os.WNOHANG)
            time.sleep(0.02)
    finally:
        if not done:
            os.killpg(child, signal.SIGKILL)
            os.waitpid(child, 0)
    return bool(done) and os.waitstatus_to_exitcode(status) in (0, NO_TESTS)


def _run_tests(copy: Path, tests: list[str], log: Path) -> None:
    """In the child: run pytest and leave with its status."""
    os.setsid()
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    for stream in (1, 2):
        os.dup2(output, stream)
    os.chdir(copy)
    sys.path[:] = [str(copy), *(p for p in sys.path if not p.startswith(str(ROOT / "tests")))]
    import pytest

    options = ["-x", "-q", "--no-header", "-p", "no:cacheprovider", "--basetemp", f"{log}.tmp"]
    status = 1
    try:
        status = int(pytest.main([*options, "--rootdir", str(copy), *tests]))
    finally:
        sys.stdout.flush()
        os._exit(status)


def require_green(copy: Path, files: set[str], limit: float) -> None:
    """Exit if a test fails that nothing was broken for: all would seem to be noticed."""
    tests = sorted({test for file in files for test in tests_for(copy, file)})
    log = Path(f"{copy}.log")
    if not runs_green(copy, tests, log, 10 * limit):
        print(log.read_text()[-3000:])
        sys.exit(f"a test fails, or all take more than {10 * limit:.0f} s, with nothing broken")


def copy_tree(to: Path) -> None:
    """Copy what tests need, compiled so that an import looks at the content, not at the time."""
    skipped = shutil.ignore_patterns(".git", ".venv", "output", "__pycache__", ".hypothesis")
    shutil.copytree(ROOT, to, ignore=skipped, symlinks=True)
    compileall.compile_dir(to, quiet=2, invalidation_mode=PycInvalidationMode.CHECKED_HASH)


def warm_up() -> None:
    """Import what all children need, none of it ours."""
    sys.dont_write_bytecode = True
    os.environ.update(OMP_NUM_THREADS="1", PYTHONDONTWRITEBYTECODE="1")
    import hypothesis  # noqa: F401
    import matplotlib.pyplot  # noqa: F401
    import open_clip  # noqa: F401
    import pytest  # noqa: F401
    import scipy.io  # noqa: F401
    import torch
    import torchvision  # noqa: F401

    torch.set_num_threads(1)


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--files", nargs="+", default=SCOPE, help="files and folders to break")
    add("--sample", type=int, help="so many breakages, drawn from all")
    add("--seed", type=int, default=0, help="of the draw")
    add("--named", action="store_true", help="only those of named_breakages.py")
    add("--kinds", nargs="+", help="only these kinds")
    add("--jobs", type=int, default=1, help="at once")
    add("--limit", type=float, default=300, help="seconds for a breakage's tests")
    add("--list", action="store_true", help="print the breakages and stop")
    return parser.parse_args()


def chosen_mutants(args: argparse.Namespace) -> list[Mutant]:
    """The breakages of the command line, in the order of the files."""
    paths = [ROOT / file for file in args.files]
    found = sorted(
        {p for path in paths for p in ([path] if path.is_file() else path.rglob("*.py"))}
    )
    files = [str(path.relative_to(ROOT)) for path in found]
    if args.named:
        return list(named_mutants(ROOT, files))
    mutants = [mutant for file in files for mutant in mutants_of(ROOT, file)]
    if args.kinds:
        mutants = [mutant for mutant in mutants if mutant.kind in args.kinds]
    if args.sample and args.sample < len(mutants):
        drawn = random.Random(args.seed).sample(range(len(mutants)), args.sample)
        mutants = [mutants[i] for i in sorted(drawn)]
    return mutants


def try_all(mutants: list[Mutant], folder: Path, jobs: int, limit: float) -> list[Mutant]:
    """Break, test, mend; return the survivors."""
    copies = [folder / f"copy{i}" for i in range(jobs)]
    for copy in copies:
        copy_tree(copy)
    free = list(copies)
    survivors = []
    require_green(copies[0], {mutant.file for mutant in mutants}, limit)

    def attempt(mutant: Mutant) -> tuple[Mutant, bool, float]:
        copy = free.pop()
        started = time.monotonic()
        source = (copy / mutant.file).read_bytes()
        (copy / mutant.file).write_bytes(mutant.apply(source))
        try:
            green = survives(copy, mutant.file, Path(f"{copy}.log"), limit)
        finally:
            (copy / mutant.file).write_bytes(source)
            free.append(copy)
        return mutant, green, time.monotonic() - started

    with ThreadPoolExecutor(jobs) as pool:
        for i, (mutant, green, seconds) in enumerate(pool.map(attempt, mutants), start=1):
            source = (ROOT / mutant.file).read_bytes()
            where = f"{mutant.file}:{mutant.line(source)}"
            state = "SURVIVED" if green else "noticed"
            print(f"[{i}/{len(mutants)}] {where} {mutant.kind}: {state} ({seconds:.0f} s)")
            if green:
                survivors.append(mutant)
                print(mutant.diff(source))
            sys.stdout.flush()
    return survivors


def main() -> int:
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that the copies go
    args = parse_args()
    mutants = chosen_mutants(args)
    if args.list:
        for mutant in mutants:
            source = (ROOT / mutant.file).read_bytes()
            print(f"{mutant.file}:{mutant.line(source)} {mutant.kind}\n{mutant.diff(source)}")
        print(f"{len(mutants)} breakages")
        return 0
    warm_up()
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="mutate") as folder:
        survivors = try_all(mutants, Path(folder), args.jobs, args.limit)
    minutes = (time.monotonic() - started) / 60
    print(f"{len(mutants)} breakages, {len(survivors)} unnoticed ({minutes:.0f} min)")
    return int(bool(survivors))


if __name__ == "__main__":
    sys.exit(main())
