#!/usr/bin/env python3
"""bf16 towers beside fp32 ones on this machine: accuracy on the mini world, and CPU seconds.

    python benchmarks/precision.py --root data --output output/precision
    python benchmarks/precision.py --output output/precision --methods DePT_CoOp --seeds 1 2 3

Each method trains on the base classes of a mini data set once per seed and precision, everything
else the same, with nothing taken from a cache; the precisions take turns. CPU seconds are a whole
process's, its start with it. The largest differences are those of one seed's two runs.
"""

from __future__ import annotations

import argparse
import resource
import statistics
import subprocess
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from dassl.utils import UserError, read_json, user_errors
from dassl.utils.cli import Parser, markdown_table, seed_list

REPO = Path(__file__).resolve().parents[1]
PRECISIONS = ("fp32", "bf16")
COLUMNS = ("method", "runs", "fp32", "bf16", "largest difference", "CPU s, fp32", "CPU s, bf16")


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = Parser(
        prog="precision.py",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--root", default="data", help="data folder (data)")
    add("--output", required=True, type=Path, metavar="DIR", help="where the runs go")
    add("--methods", nargs="+", default=["CoOp", "DePT_CoOp"], metavar="NAME")
    add("--dataset", default="mini_shapes", help="a file of configs/datasets (mini_shapes)")
    add("--seeds", nargs="+", type=seed_list, default=[[1], [2], [3]])
    add("--set", nargs="+", default=[], metavar="KEY VALUE", help="config keys of all runs")
    return parser.parse_args(argv)


def run(args: argparse.Namespace, method: str, key: str, precision: str, seed: int) -> tuple:
    """Train and test one; its accuracy in %, and the CPU seconds of its process.

    key: of the method's precision. Raises UserError where train.py fails.
    """
    folder = args.output / method / precision / f"seed{seed}"
    command = [
        *(sys.executable, "train.py", "--trainer", method, "--root", args.root, "--no-cache"),
        *("--dataset-config-file", f"configs/datasets/{args.dataset}.yaml"),
        *("--config-file", f"configs/trainers/{method}/mini.yaml", "--seed", str(seed)),
        *("--output-dir", str(folder.resolve()), "--overwrite"),
        *("DATASET.SUBSAMPLE_CLASSES", "base", "DATASET.NUM_SHOTS", "16", key, precision),
        *args.set,
    ]
    before = _children()
    done = subprocess.run(command, cwd=REPO, capture_output=True, text=True)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise UserError(f"train.py ended with status {done.returncode}: {last}")
    return read_json(folder / "result.json", dict)["accuracy"], _children() - before


def _children() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def main(argv: list[str] | None = None) -> None:
    """Run the command."""
    args = parse_args(argv)
    import trainers
    from dassl.engine import TRAINER_REGISTRY

    trainers.modules()
    rows = []
    for method in args.methods:
        key = f"TRAINER.{TRAINER_REGISTRY.get(method).config_node}.PREC"
        found: dict[str, list] = {precision: [] for precision in PRECISIONS}
        for seed in [seed for seeds in args.seeds for seed in seeds]:
            for precision, runs in found.items():
                runs.append(run(args, method, key, precision, seed))
        pairs = list(zip(*found.values(), strict=True))
        means = [statistics.mean(accuracy for accuracy, _ in runs) for runs in found.values()]
        cpu = [statistics.mean(seconds for _, seconds in runs) for runs in found.values()]
        apart = max(abs(a[0] - b[0]) for a, b in pairs)
        numbers = (*(f"{mean:.2f}" for mean in means), f"{apart:.2f}", *(f"{s:.1f}" for s in cpu))
        rows.append((method, str(len(pairs)), *numbers))
    print(markdown_table([COLUMNS, *rows]))


if __name__ == "__main__":
    with user_errors():
        main()
