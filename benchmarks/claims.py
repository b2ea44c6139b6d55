#!/usr/bin/env python3
"""Whether methods show on CLIP what they claim, each in one table with its controls.

    python benchmarks/claims.py --root data --output output/claims
    python benchmarks/claims.py --output output/claims --methods EPT LAMP --seeds 1-5
    python benchmarks/claims.py --output output/claims --config vit_b16_ep10 --datasets dtd eurosat
    python benchmarks/claims.py --output output/claims --read-only

A trainer declares its claim: its own runs, its controls, what is measured beside base, new and H
(tuning/claims.py). The runs are those of run_protocol.py: what is complete isn't run again, what
was interrupted goes on, runs that several claims need are made once. A row that starts from a run
over other data sets gets that first, for each seed. claims.json and claims.md in the output folder
hold what was measured, and on which machine. Exit status 1: a run failed, its row is left out.

cost: steps of the rows in turn, with random weights in a released model's shapes. starts: see
convergence.py. corruptions: at one severity, of the models of the same runs.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from dataclasses import replace
from itertools import chain
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch

import trainers
from benchmarks.claim_tables import Runs, measured, of_cost, page
from benchmarks.timing import device_name
from dassl.config.severities import SEVERITIES
from dassl.engine import TRAINER_REGISTRY
from dassl.utils import (
    GOES_ON,
    UserError,
    atomic_write,
    find_checkpoint,
    heed_signals,
    suggest,
    user_errors,
    write_json,
)
from dassl.utils.cli import Parser, distinct_seeds, positive, seed_list, shots
from experiments.chains import Chain, Job, side_by_side, without_repetitions
from experiments.chosen_datasets import absolute, check_labels
from experiments.launch import TOGETHER
from experiments.progress import PlanProgress
from experiments.protocols import ROOT, Plan
from experiments.runner import RunnerSettings, has_result, local_slots, run_local
from tuning.claims import Claim, Row, declared

MINI = ("mini_shapes", "mini_fabrics", "mini_scenes", "mini_badges")


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Parse the command line.

    Raises:
        UserError: a method that claims nothing here, options in odd numbers.
    """
    parser = Parser(
        prog="claims.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--root", default="data", help="data folder (data)")
    add("--output", required=True, type=Path, metavar="DIR", help="where runs and tables are")
    add("--methods", nargs="+", metavar="NAME", help="trainers that declare a claim (all)")
    add("--datasets", nargs="+", default=["mini_shapes"], help="(mini_shapes)")
    add("--seeds", nargs="+", type=seed_list, default=[[1, 2, 3]], help="such as 1-3 (1-3)")
    add("--shots", type=shots, default=16, help="images per class (16)")
    add("--config", default="mini", help="a file of configs/trainers/TRAINER (mini)")
    add("--library", default="mini_library", help="the same, of runs over other data sets")
    add("--sources", nargs="+", default=list(MINI), help="those data sets, but for the one tested")
    add("--severity", type=int, choices=SEVERITIES, default=3, help="of corruptions (3)")
    add("--opts", nargs="*", default=[], metavar="KEY VALUE", help="config keys of all runs")
    add("--backbone", default="ViT-B/16", help="shapes that steps are timed with (ViT-B/16)")
    add("--classes", type=positive, default=100, help="classes that steps are timed with (100)")
    add("--repeats", type=positive, default=5, help="steps timed of each row (5)")
    add("--jobs", type=positive, default=0, help="runs at once (one per GPU, or per two cores)")
    add("--read-only", action="store_true", help="run nothing")
    args = parser.parse_args(argv)
    if len(args.opts) % 2:
        raise UserError("--opts: keys and values come in pairs")
    trainers.modules()
    known = declared()
    for name in args.methods or []:
        if name not in known:
            raise UserError(f"{name} declares no claim{suggest(name, known)}: {', '.join(known)}")
    args.datasets = list(dict.fromkeys(args.datasets))
    check_labels(args.datasets)
    args.seeds = distinct_seeds(args.seeds)
    args.methods = list(dict.fromkeys(args.methods or known))
    return args


def options_of(row: Row, args: argparse.Namespace) -> tuple[str, ...]:
    """A row's config keys and values, then those of all runs."""
    return (*chain.from_iterable(row.options.items()), *args.opts)


def library_of(row: Row, args: argparse.Namespace, dataset: str, seed: int) -> Job:
    """The run over other data sets that a row starts from.

    Raises:
        UserError: there are none.
    """
    sources = [name for name in args.sources if name != dataset]
    if not sources:
        raise UserError(f"--sources: {row.name} needs data sets beside {dataset}")
    further = tuple(f"configs/datasets/{name}.yaml" for name in sources[1:])
    opts = (*options_of(row, args), *(("DATASET.FURTHER", repr(further)) if further else ()))
    plan = Plan(Path(args.root), args.output / "libraries" / dataset, args.library, opts)
    job = plan.base_to_new(row.trainer, sources[0], seed, args.shots).jobs[0]
    return replace(job, kin="")


def chain_of(
    row: Row, claim: Claim, args: argparse.Namespace, dataset: str, seed: int
) -> Chain | None:
    """A row's runs of one seed; None as long as its library is missing."""
    opts, output = options_of(row, args), args.output / "runs"
    if row.library:
        library = library_of(row, args, dataset, seed)
        if not has_result(library):
            return None
        weights = find_checkpoint(library.folder, TRAINER_REGISTRY.get(row.trainer).model_name)
        opts, output = (*opts, "MODEL.INIT_WEIGHTS", str(weights)), args.output / "from_libraries"
    severities = (args.severity,)
    plan = Plan(Path(args.root), output, args.config, opts, severities=severities)
    make = plan.corruptions if "corruptions" in claim.measures else plan.base_to_new
    found = make(row.trainer, dataset, seed, args.shots)
    if row.library:  # each seed has other weights: they don't go side by side
        jobs = tuple(replace(job, kin="") for job in found.jobs)
        found = Chain(f"{found.name.split(' MODEL.')[0]}, from a library", jobs)
    return found


def chains_of(
    row: Row, claim: Claim, args: argparse.Namespace
) -> dict[tuple[str, int], Chain | None]:
    """A row's runs by data set and seed."""
    places = [(dataset, seed) for dataset in args.datasets for seed in args.seeds]
    return {where: chain_of(row, claim, args, *where) for where in places}


def run(chains: Sequence[Chain], args: argparse.Namespace) -> set[Path]:
    """Make the runs that are missing; return the folders of those that failed, which is said."""
    ordered = without_repetitions(sorted(chains, key=lambda c: -len(c.jobs)))
    slots = local_slots(torch.cuda.device_count(), 1, args.jobs)
    joined = side_by_side(ordered, min(TOGETHER, len(args.seeds)))
    progress = PlanProgress(joined, len(slots))
    run_local(joined, RunnerSettings(), slots, progress.report)
    progress.close()
    return {o.job.folder for o in progress.outcomes if o.state in ("failed", "left out")}


def rows_of(claim: Claim) -> tuple[Row, ...]:
    """All rows of its table."""
    return (*claim.rows, *claim.controls)


def main(argv: list[str] | None = None) -> int:
    """Run the command; return its exit status."""
    args = parse_args(argv)
    args.root, args.output = os.path.abspath(args.root), args.output.resolve()
    args.datasets = [absolute(word) for word in args.datasets]
    os.chdir(ROOT)  # the runs start here
    claims = {name: claim for name, claim in declared().items() if name in args.methods}
    failed: set[Path] = set()
    if not args.read_only:
        places = [(d, seed) for d in args.datasets for seed in args.seeds]
        rows = {row.name: row for claim in claims.values() for row in rows_of(claim)}.values()
        libraries = [
            Chain(f"{row.trainer} library for {d} seed {s}", (library_of(row, args, d, s),))
            for row in rows
            if row.library
            for d, s in places
        ]
        if libraries:
            run(libraries, args)
        tables = [chains_of(r, claim, args) for claim in claims.values() for r in rows_of(claim)]
        failed = run([found for chains in tables for found in chains.values() if found], args)
    results = {}
    for name, claim in claims.items():
        rows = [Runs(row, chains_of(row, claim, args)) for row in rows_of(claim)]
        results[name] = measured(claim, rows, failed)
        if "cost" in claim.measures:
            results[name]["cost"] = of_cost(rows_of(claim), args)
    everything = {
        "machine": device_name(torch.device("cuda" if torch.cuda.is_available() else "cpu")),
        "settings": {k: str(v) if isinstance(v, Path) else v for k, v in vars(args).items()},
        "methods": results,
    }
    write_json(everything, args.output / "claims.json")
    text = page(everything)
    with atomic_write(args.output / "claims.md") as file:
        file.write(text)
    print(text)
    return int(any(result["missing"] for result in results.values()))


if __name__ == "__main__":
    heed_signals()
    with user_errors(f"interrupted; {GOES_ON}"):
        sys.exit(main())
