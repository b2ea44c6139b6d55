"""CPU seconds of whole protocols on the mini world: a process per run against workers, in turns.

    OMP_NUM_THREADS=1 python benchmarks/whole_protocols.py --json protocols.json
    python benchmarks/whole_protocols.py --before ../older-checkout --only "quick start"

CPU seconds are those of all processes, the launcher's too; wall time hangs on what else goes on.
"Start-ups" is the quick start with one step to train and its features at hand: nearly all of it is
what precedes training. Every way has a data folder of its own, whose features it encodes in the
first case. The ways' results are compared, to the digit.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from dassl.utils import UserError, user_errors, write_json
from dassl.utils.cli import Parser, output_file, positive

ROOT = Path(__file__).resolve().parents[1]
SETS = ("--datasets", "mini_shapes", "mini_badges", "--seeds", "1-3")
QUICK = ("--trainers", "ZeroshotCLIP", "CoOp", "DePT_CoOp", *SETS)
# name -> words of run_protocol.py
CASES = {
    "quick start": QUICK,
    "start-ups": (*QUICK, "--shots", "1", "--opts", "OPTIM.MAX_EPOCH", "1"),
    "3 methods x 2 sets x 3 seeds": (
        *("--trainers", "KgCoOp", "MaPLe", "DePT_CoOp", *SETS),
        *("--shots", "4", "--opts", "OPTIM.MAX_EPOCH", "2"),
    ),
}
PER_RUN, WORKERS, BEFORE = "a process per run", "workers", "before"


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--only", nargs="+", choices=CASES, default=list(CASES), help="of the cases")
    add("--repeats", type=positive, default=1, help="timings of each, of which the median (1)")
    add("--jobs", type=positive, default=2, help="runs at once (2)")
    add("--before", type=Path, help="another checkout of this code, measured beside it")
    add("--ways", nargs="+", choices=(BEFORE, PER_RUN, WORKERS), help="of the ways (all)")
    add("--json", type=output_file, help="a file for the figures")
    args = parser.parse_args(argv)
    if args.ways and BEFORE in args.ways and not args.before:
        raise UserError("--ways before needs --before, a checkout of the code before")
    return args


def ways(args: argparse.Namespace) -> dict[str, tuple[Path, tuple[str, ...]]]:
    """Name → whose run_protocol.py, and its further words."""
    found = {PER_RUN: (ROOT, ("--process-per-run",)), WORKERS: (ROOT, ())}
    if args.before:
        found = {BEFORE: (args.before.resolve(), ()), **found}
    return {name: way for name, way in found.items() if not args.ways or name in args.ways}


def measure(code: Path, words: Sequence[str]) -> dict[str, float]:
    """CPU and wall seconds of a protocol. Raises UserError if it fails."""
    started, spent = time.perf_counter(), _spent()
    command = [sys.executable, "scripts/run_protocol.py", "base_to_new", *words]
    done = subprocess.run(command, cwd=code, capture_output=True, text=True, check=False)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise UserError(f"{' '.join(command)} failed: {last}")
    return {"cpu": _spent() - spent, "wall": time.perf_counter() - started}


def _spent() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def accuracies(output: Path) -> dict[str, float]:
    """Each run's accuracy, by its folder."""
    return {
        str(path.parent.relative_to(output)): json.loads(path.read_text())["accuracy"]
        for path in sorted(output.rglob("result.json"))
    }


def measure_case(
    name: str, each: dict[str, tuple[Path, tuple[str, ...]]], folder: Path, args: argparse.Namespace
) -> dict[str, Any]:
    """All ways in turns: their medians, and whether their results are the same."""
    times: dict[str, list[dict[str, float]]] = {way: [] for way in each}
    results = []
    for repeat in range(args.repeats):
        for number, (way, (code, further)) in enumerate(each.items()):
            output = folder / f"{name} {repeat} {number}"
            # The case's words last: its --opts take all that follow.
            words = ["--root", str(folder / f"data{number}"), "--output", str(output)]
            words += ["--jobs", str(args.jobs), *further, *CASES[name]]
            times[way].append(measure(code, words))
            results.append(accuracies(output))
    medians = {
        way: {kind: statistics.median(one[kind] for one in took) for kind in ("cpu", "wall")}
        for way, took in times.items()
    }
    # Another checkout may do without some of them.
    both = set.intersection(*(set(result) for result in results))
    same = all(result[run] == results[0][run] for result in results for run in both)
    return {
        "case": name,
        "runs": max(map(len, results)),
        "in_common": len(both),
        "equal": same and bool(both),
        "seconds": medians,
    }


def told(row: dict[str, Any]) -> str:
    """A case's line."""
    seconds = row["seconds"]
    parts = [f"{way} {took['cpu']:.0f} s" for way, took in seconds.items()]
    first, last = next(iter(seconds.values())), list(seconds.values())[-1]
    same = "same results" if row["equal"] else "OTHER RESULTS"
    if row["in_common"] < row["runs"]:
        same += f" of the {row['in_common']} that all have"
    share = f"{last['cpu'] / max(first['cpu'], 0.01):.2f} of the first"
    return f"{row['case']:<30} {row['runs']} runs: {', '.join(parts)}; {share}; {same}"


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Measure and print; returns what `--json` writes."""
    args = parse_args(argv)
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    result: dict[str, Any] = {"threads": os.environ["OMP_NUM_THREADS"], "jobs": args.jobs}
    result["rows"] = []
    with tempfile.TemporaryDirectory(prefix="protocols-") as folder:
        for name in args.only:
            row = measure_case(name, ways(args), Path(folder), args)
            result["rows"].append(row)
            print(told(row), flush=True)
    if args.json:
        write_json(result, args.json)
    return result


if __name__ == "__main__":
    with user_errors():
        main()
