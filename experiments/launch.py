#!/usr/bin/env python3
"""Run a whole protocol: plan its runs, skip the complete ones, go on past failures.

    python scripts/run_protocol.py base_to_new --root DATA --trainers CoOp DePT_CoOp --seeds 1-3
    python scripts/run_protocol.py base_to_new --trainers all --datasets mini_shapes
    python scripts/run_protocol.py cross_dataset --datasets caltech101 dtd --dry-run
    python scripts/run_protocol.py few_shot --cluster slurm --partition gpu --chains-per-job 4

Protocols: base_to_new, base_and_new, cross_dataset, domain_generalization, few_shot,
few_shot_adapters, corruptions, transductive, zero_shot, lambda, ablation.
Each has the paper's trainers, data sets, seeds and shots as its defaults; for the two transfers,
--datasets are the targets and --source is what is trained on. Images of your own are NAME=FOLDER.
Models that differ only in seed, or in λ, are trained side by side. Runs go in workers that have
PyTorch loaded. The same command again takes up what is missing. Exit status: 0 if all is complete,
1 if a run failed, 2 for a mistake in the command.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from collections.abc import Sequence
from contextlib import closing
from dataclasses import replace
from functools import partial
from itertools import chain
from pathlib import Path

from dassl.config.severities import SEVERITIES
from dassl.utils import GOES_ON, UserError, heed_signals, user_errors
from dassl.utils.cli import Parser, distinct_seeds, natural, positive, seed_list, shots
from experiments.chains import Chain, side_by_side, without_repetitions
from experiments.chosen_datasets import absolute, check_labels
from experiments.progress import PlanProgress, introduce, watched
from experiments.protocols import PROTOCOLS, ROOT, Plan, is_seeded
from experiments.results.folders import TRANSDUCTIVE
from experiments.results.under_corruption import CORRUPTED
from experiments.runner import RunnerSettings, is_complete, local_slots, run_local
from experiments.slurm import Request, planned
from experiments.watching.lines import say
from experiments.watching.reading import standing_of
from experiments.watching.records import Recorder, write_plan

TOGETHER = 8
ALL = "all"  # in place of trainers' names
WARM = (sys.executable, "-m", "experiments.warm")  # what workers are forked from: safe on Linux
# Keys that the plan sets for each run, and the options that do.
SET_BY_PLAN = {
    "SEED": "--seeds",
    "OUTPUT_DIR": "--output",
    "RESUME": "the same command again: it goes on",
    "TRAINER.NAME": "--trainers",
    "DATASET.NAME": "--datasets",
    "DATASET.LABEL": "--datasets NAME=FOLDER",
    "DATASET.ROOT": "--root",
    "DATASET.NUM_SHOTS": "--shots",
    "DATASET.SUBSAMPLE_CLASSES": "another protocol",
}


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("protocol", choices=PROTOCOLS)
    names = "names under configs/trainers, or: all (those that need no file or run of yours)"
    add("--trainers", nargs="+", help=names)
    add("--datasets", nargs="+", help="names under configs/datasets, or NAME=FOLDER")
    add("--seeds", nargs="+", type=seed_list, help="such as 1-3")
    add("--shots", nargs="+", type=shots, help="images per class")
    add("--source", default="imagenet", help="what transfers are trained on (imagenet)")
    severities = "of corruptions, 1 to 5, such as 1-5 (3)"
    add("--severities", nargs="+", type=severity_list, default=[], help=severities)
    add("--root", help="the folder that holds the data sets (a data set's DATASET.ROOT, or data)")
    add("--output", default="output", help="the folder that gets the runs (output)")
    add("--config", default="", help="a name under configs/trainers/TRAINER, where it has several")
    add("--opts", nargs="*", default=[], metavar="KEY VALUE", help="changed config settings; a")
    add("--dry-run", action="store_true", help="print the commands, or Slurm's scripts, and stop")
    add("--show", action="store_true", help="show what the runs print")
    add("--attempts", type=positive, default=2, help="how often a failing run is tried (2)")
    at_once = "runs at once (one per GPU place, or per two cores)"
    add("--jobs", type=positive, default=0, help=at_once)
    together = f"models at most that are trained side by side ({TOGETHER})"
    add("--together", type=positive, help=together)
    add("--per-gpu", type=positive, default=1, help="runs at once on a GPU (1)")
    alone = "start each run anew, not in a worker that has PyTorch loaded"
    add("--process-per-run", action="store_true", help=alone)
    _add_teacher_options(parser)
    _add_cluster_options(parser)
    parser.set_defaults(default_root="data")
    args = parser.parse_args(argv)
    if len(args.opts) % 2:  # an odd one out in front: the config's name
        args.config, *args.opts = args.opts
    given = [name for name in args.of_slurm if getattr(args, name) != parser.get_default(name)]
    if given and args.cluster != "slurm":
        raise UserError(f"--{given[0].replace('_', '-')} is for --cluster slurm")
    _check(args)
    return args


def _check(args: argparse.Namespace) -> None:
    """Raise UserError for options that this protocol has no use for."""
    for key in args.opts[::2]:
        if key in SET_BY_PLAN:
            raise UserError(f"--opts {key}: that is the plan's to set; say {SET_BY_PLAN[key]}")
        if key in PROTOCOLS[args.protocol].varies:
            raise UserError(f"--opts {key}: that is what the protocol {args.protocol} varies")
    taught = (args.teacher, args.teacher_config) != (Plan.teacher, Plan.teacher_config)
    if taught and args.protocol != TRANSDUCTIVE:
        raise UserError(f"--teacher and --teacher-config are for the protocol {TRANSDUCTIVE}")
    if args.severities and args.protocol != CORRUPTED:
        raise UserError(f"--severities are for the protocol {CORRUPTED}")


def severity_list(text: str) -> list[int]:
    """Read "3" or "1-5"."""
    found = seed_list(text)
    if not set(found) <= set(SEVERITIES):
        raise argparse.ArgumentTypeError(f"severities go from 1 to 5, not {text}")
    return found


def _add_teacher_options(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    taught = f"what teaches in {TRANSDUCTIVE} ({Plan.teacher}), with a config of its own"
    add("--teacher", default=Plan.teacher, metavar="TRAINER", help=taught)
    add("--teacher-config", default=Plan.teacher_config, help=f"the config ({Plan.teacher_config})")


def _add_cluster_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--cluster", choices=("local", "slurm"), default="local")
    group = parser.add_argument_group("with --cluster slurm")
    add = group.add_argument
    for name in ("partition", "account", "qos", "constraint"):
        add(f"--{name}", default="", help="as sbatch takes it")
    add("--exclude", default="", metavar="NODES", help="as sbatch takes it")
    add("--time", type=positive, default=24 * 60, help="minutes that a task has (1440)")
    several = "joint trainings, with their tests, that a task of the job array does in turn (1)"
    add("--chains-per-job", type=positive, default=1, help=several)
    add("--max-parallel", type=positive, default=0, help="tasks at once at most (all)")
    gpus = "GPUs of a task (1 where the partition has any, else 0)"
    add("--gpus-per-job", type=natural, help=gpus)
    add("--cpus-per-job", type=positive, default=8, help="cores of a task (8)")
    add("--memory-gb", type=positive, default=0, help="memory of a task (the partition's usual)")
    setup = "a line of your own for the job's script, such as 'module load cuda'; several times"
    add("--setup", action="append", default=[], metavar="LINE", help=setup)
    add("--detach", action="store_true", help="submit, and don't wait")
    parser.set_defaults(of_slurm=[action.dest for action in group._group_actions])


def make_plan(args: argparse.Namespace) -> list[Chain]:
    """Return the chains of the command. Raises UserError for an unknown name or setting."""
    protocol = PROTOCOLS[args.protocol]
    if args.trainers == [ALL]:
        # Here, as it imports PyTorch, which no other plan needs.
        from experiments.listing import all_trainers

        args.trainers, needs = all_trainers()
        left_out = (f"{name} (needs {keys})" for name, keys in needs.items())
        say(f"{ALL}: {len(args.trainers)} trainers, without {', '.join(left_out)}", sys.stderr)
    plan = Plan(
        Path(args.root or args.default_root),
        Path(args.output),
        args.config,
        tuple(args.opts),
        args.source,
        root_given=bool(args.root),
        severities=tuple(dict.fromkeys(chain.from_iterable(args.severities))) or Plan.severities,
        teacher=args.teacher,
        teacher_config=args.teacher_config,
    )
    seeds = distinct_seeds(args.seeds) if args.seeds else protocol.seeds
    datasets = args.datasets or protocol.datasets
    check_labels(datasets)
    chains = protocol.chains(
        plan,
        args.trainers or protocol.trainers,
        datasets,
        seeds,
        args.shots or protocol.shots,
    )
    return without_repetitions(chains)


def side_by_side_at_most(args: argparse.Namespace, chains: int, slots: int) -> int:
    """How many models are trained side by side: no more than leave each slot something to do."""
    return args.together or min(TOGETHER, -(-chains // slots))


def print_commands(chains: list[Chain]) -> None:
    """Print what would be run, and which runs are complete already."""
    for job in chain.from_iterable(each.jobs for each in chains):
        try:
            note = "# complete: " if is_complete(job) else ""
        except UserError as error:
            note = f"# refused, {error}: "
        print(note + job.command)


def main() -> int:
    """Carry out the command; return the exit status."""
    heed_signals()
    with user_errors(f"interrupted; {GOES_ON}"):
        return launch(parse_args())


def launch(args: argparse.Namespace) -> int:
    """Plan, run, report; return the exit status."""
    if Path.cwd() != ROOT:  # the runs start in the repository
        args.root = args.root and os.path.abspath(args.root)
        args.default_root = os.path.abspath(args.default_root)
        args.output = os.path.abspath(args.output)
        args.datasets = args.datasets and [absolute(word) for word in args.datasets]
        args.source = absolute(args.source)
        os.chdir(ROOT)
    chains = make_plan(args)
    for trainer in args.trainers or ():
        if not is_seeded(trainer):
            say(f"{trainer} trains nothing: one run, whatever the seeds", sys.stderr)
    warm = not args.process_per_run and sys.platform == "linux"
    settings = RunnerSettings(attempts=args.attempts, show=args.show, warm=WARM if warm else ())
    if not args.dry_run:
        introduce(args.protocol, chains, Path(args.output))
    if args.cluster == "slurm":
        return launch_slurm(args, chains, settings)
    if args.dry_run:
        print_commands(chains)
        return 0
    return launch_local(args, chains, settings)


def launch_local(
    args: argparse.Namespace, chains: Sequence[Chain], settings: RunnerSettings
) -> int:
    """Run the chains here, report; return the exit status."""
    import torch

    gpus = torch.cuda.device_count()
    if args.per_gpu > 1 and not gpus:
        print(f"--per-gpu {args.per_gpu}: there is no GPU here; --jobs says how many runs at once")
    slots = local_slots(gpus, args.per_gpu, args.jobs)
    chains = side_by_side(chains, side_by_side_at_most(args, len(chains), len(slots)))
    most = max((len(chain.steps[0]) for chain in chains), default=0)
    together = f", up to {most} models side by side in each" if most > 1 else ""
    say(f"  {len(chains)} chains, {min(len(slots), len(chains))} at once{together}")
    plan = write_plan(Path(args.output), args.protocol, sys.argv[1:], chains)
    with closing(Recorder(plan, len(slots))) as recorder:
        progress = PlanProgress(chains, len(slots), args.protocol, Path(args.output), recorder)
        with watched(progress.standing, not args.show):
            run_local(chains, settings, slots, progress.report, progress)
    return progress.close()


def launch_slurm(
    args: argparse.Namespace, chains: Sequence[Chain], settings: RunnerSettings
) -> int:
    """Submit what is missing; wait for it, unless told not to; return the exit status."""
    request = Request(
        *(args.partition, args.account, args.qos, args.constraint, args.exclude),
        setup=tuple(args.setup),
        minutes=args.time,
        cpus=args.cpus_per_job,
        memory_gb=args.memory_gb,
        gpus=args.gpus_per_job,
        per_task=args.chains_per_job,
        at_once=args.max_parallel,
        per_gpu=args.per_gpu,
        jobs=args.jobs,
    )

    def join(missing: Sequence[Chain]) -> list[Chain]:
        limit = side_by_side_at_most(args, len(missing), args.max_parallel or 1)
        return side_by_side(missing, limit)

    folder = Path(args.output) / "slurm"
    with planned(chains, request, folder, join, only_look=args.dry_run) as jobs:
        if args.dry_run:
            jobs.show(settings)
            return 0
        plan = write_plan(Path(args.output), args.protocol, sys.argv[1:], jobs.chains)
        jobs.submit(replace(settings, plan=plan))
    if args.detach:
        jobs.leave()
        return 0
    progress = PlanProgress(jobs.chains, jobs.width, args.protocol)
    with closing(Recorder(plan, 0)), watched(partial(standing_of, plan), not args.show, every=5.0):
        jobs.wait(progress.report)
    status = progress.close()
    if any(outcome.state == "done" for outcome in progress.outcomes):
        tables = [sys.executable, "scripts/parse_results.py", args.output]
        subprocess.run(tables, cwd=ROOT, stdin=subprocess.DEVNULL, check=False)
    return status
