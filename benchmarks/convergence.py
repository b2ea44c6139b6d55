#!/usr/bin/env python3
"""Whether InfoPrompt and StablePT depend less on their start than CoOp, and learn faster.

    python benchmarks/convergence.py --root data --output output/convergence
    python benchmarks/convergence.py --root data --output output/convergence --seeds 1 2 3 4 5 \
        --dataset mini_shapes --classes base --rows "CoOp, words" "InfoPrompt, words"
    python benchmarks/convergence.py --output output/convergence --read-only

It trains every row for every seed where that isn't done, and reads metrics.jsonl of the runs. A
seed draws start, few-shot sample and order; rows of one trainer differ in the start. What is
compared is the cross entropy of the image-text head on the training views, an epoch's mean, which
all of them have: its last value, mean and standard deviation over the runs, and the first epoch by
which it has made 95 % of its way from the first epoch's value to the last. The accuracy is the test
after the last epoch; nothing is chosen by it.
"""

from __future__ import annotations

import argparse
import math
import statistics
import subprocess
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import trainers
from dassl.utils import UserError, read_json, read_json_lines, user_errors
from dassl.utils.cli import Parser, markdown_table, seed_list
from tuning.claims import Row, declared

REPO = Path(__file__).resolve().parents[1]


def starts() -> dict[str, Row]:
    """The rows of the claims on starts, by name; controls come first."""
    trainers.modules()
    claims = [claim for claim in declared().values() if "starts" in claim.measures]
    return {row.name: row for claim in claims for row in (*claim.controls, *claim.rows)}


ROWS = starts()
SHARE = 0.95
COLUMNS = ("row", "runs", "cross entropy", "its sd", "epochs to 95 %", "accuracy", "its sd")


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = Parser(
        prog="convergence.py",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--root", default="data", help="data folder (data)")
    add("--output", required=True, type=Path, metavar="DIR", help="where the runs are")
    add("--dataset", default="mini_shapes", help="a file of configs/datasets (mini_shapes)")
    add("--config", default="mini", help="a file of configs/trainers/<trainer> (mini)")
    add("--classes", default="base", choices=("all", "base"), help="those trained on (base)")
    add("--seeds", nargs="+", type=seed_list, default=[[1], [2], [3], [4], [5]])
    add("--rows", nargs="+", choices=list(ROWS), default=list(ROWS), metavar="ROW")
    add("--set", nargs="+", default=[], metavar="KEY VALUE", help="config keys of all runs")
    add("--read-only", action="store_true", help="train nothing")
    return parser.parse_args(argv)


def folder_of(args: argparse.Namespace, row: str) -> Path:
    """Where a row's runs are, in a folder for each seed."""
    name = "".join(c if c.isalnum() or c == "." else "_" for c in row)
    return args.output / args.dataset / args.classes / args.config / name


def commands(args: argparse.Namespace) -> list[list[str]]:
    """A command line of train.py for each run."""
    found = []
    for row in args.rows:
        trainer = ROWS[row].trainer
        pairs = [word for pair in ROWS[row].options.items() for word in pair]
        for seed in seeds_of(args):
            found.append(
                [
                    *("--trainer", trainer, "--root", args.root, "--seed", str(seed)),
                    *("--dataset-config-file", f"configs/datasets/{args.dataset}.yaml"),
                    *("--config-file", f"configs/trainers/{trainer}/{args.config}.yaml"),
                    *("--output-dir", str(folder_of(args, row).resolve() / f"seed{seed}")),
                    *("DATASET.NUM_SHOTS", "16", "DATASET.SUBSAMPLE_CLASSES", args.classes),
                    *(*pairs, *args.set),
                ]
            )
    return found


def seeds_of(args: argparse.Namespace) -> list[int]:
    """The seeds that were asked for."""
    return [seed for seeds in args.seeds for seed in seeds]


def losses_of(folder: Path) -> list[float]:
    """The cross entropy of each epoch. Raises UserError where it isn't recorded."""
    lines = read_json_lines(folder / "metrics.jsonl")
    found = [line.get("losses", {}).get("itm") for line in lines]
    if not found or not all(isinstance(x, (int, float)) and math.isfinite(x) for x in found):
        raise UserError(f"{folder / 'metrics.jsonl'} has no loss itm of every epoch")
    return found


def epochs_to(losses: list[float], share: float = SHARE) -> int | None:
    """The first epoch by which so much of the way from first to last value is made.

    None where the last isn't below the first.
    """
    first, last = losses[0], losses[-1]
    if last >= first:
        return None
    goal = first - share * (first - last)
    # The last value may miss its own goal by a rounding.
    return next((i for i, x in enumerate(losses, 1) if x <= goal), len(losses))


def row_of(name: str, folders: list[Path]) -> tuple[str, ...]:
    """A row of the table, of the runs in these folders."""
    curves = [losses_of(folder) for folder in folders]
    accuracies = [read_json(folder / "result.json", dict)["accuracy"] for folder in folders]
    epochs = [epochs_to(curve) for curve in curves]
    shown = ", ".join("never" if n is None else str(n) for n in epochs)
    ends = [curve[-1] for curve in curves]
    return (
        *(name, str(len(folders)), f"{statistics.mean(ends):.4f}", spread(ends, 4), shown),
        *(f"{statistics.mean(accuracies):.2f}", spread(accuracies, 2)),
    )


def spread(values: list[float], digits: int) -> str:
    """The standard deviation over n − 1; a dash of one value."""
    return f"{statistics.stdev(values):.{digits}f}" if len(values) > 1 else "–"


def main(argv: list[str] | None = None) -> None:
    """Run the command."""
    args = parse_args(argv)
    for command in [] if args.read_only else commands(args):
        print(" ".join(command), file=sys.stderr, flush=True)
        done = subprocess.run(
            [sys.executable, "train.py", *command], cwd=REPO, stdout=subprocess.DEVNULL
        )
        if done.returncode:
            raise UserError(f"train.py ended with status {done.returncode}")
    rows = []
    for name in args.rows:
        folders = [folder_of(args, name) / f"seed{seed}" for seed in seeds_of(args)]
        missing = [folder for folder in folders if not (folder / "result.json").is_file()]
        if missing:
            raise UserError(f"{missing[0]} holds no finished run: leave out --read-only")
        rows.append(row_of(name, folders))
    print(markdown_table([COLUMNS, *rows]))


if __name__ == "__main__":
    with user_errors():
        main()
