r"""One run: merge the config, build the trainer, train, test.

    python train.py --list
    python train.py --trainer DePT_CoOp --root DATA \
        --dataset-config-file configs/datasets/oxford_pets.yaml \
        --config-file configs/trainers/DePT_CoOp/vit_b16_ep10.yaml \
        DATASET.NUM_SHOTS 16 DATASET.SUBSAMPLE_CLASSES base

Several runs in one process: `--seed 1 2 3` trains the seeds side by side, each in OUTPUT_DIR/seedN.
`… --and WORDS --and WORDS` adds runs: the first one's options, changed by WORDS. Those trained side
by side may differ in seed, folder and TRAINER.DEPT.WEIGHT; with --eval-only, in anything.
"""

from __future__ import annotations

import os
import sys

from dassl.utils import GOES_ON, UserError, heed_signals, user_errors
from tuning.options import check_args, check_cfg, of_seed, parse_runs, setup_cfg

# Threads that wait by sleeping: where another process has a core, spinning ones made a step of the
# mini world many times slower. Read when torch is loaded, so set before.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


def main(argv: list[str] | None = None) -> None:
    """Do what the command line says; `argv` in place of its words.

    Raises:
        UserError: a mistake in them, in the data, or some of several runs failed.
    """
    words = sys.argv[1:] if argv is None else list(map(str, argv))
    lines = parse_runs(words, description=__doc__)
    if any(args.list for args in lines):
        from experiments.listing import listing

        print(listing())
        return
    # Each run: its options, and its seed if it is one of several in one folder.
    runs = [(args, seed) for args in lines for seed in (args.seed if args.seed[1:] else [None])]
    cfgs = [setup_cfg(*run) for run in runs]

    from dassl.engine import TRAINER_REGISTRY

    for (args, _), cfg in zip(runs, cfgs, strict=True):
        trains = TRAINER_REGISTRY.get(cfg.TRAINER.NAME).trains if cfg.TRAINER.NAME else True
        check_args(args, trains)
        check_cfg(cfg)
    import datasets  # noqa: F401  (its modules register the data sets)

    if checked := [cfg for (args, _), cfg in zip(runs, cfgs, strict=True) if args.check_images]:
        from dassl.data import check_images

        check_images(checked)
    if lines[0].eval_only:
        evaluate(runs, cfgs)
    elif lines[0].no_train:
        build(cfgs)
    else:
        train(cfgs)


def train(cfgs: list) -> None:
    """Train what isn't complete; several runs as one."""
    from dassl.engine import build_trainer, start_log
    from tuning.multi_seed import SideBySide, build_runs, check_folders
    from tuning.run import standing

    check_folders(cfgs)
    todo = []
    for cfg in cfgs:
        if standing(cfg) == "complete":
            print(f"{cfg.OUTPUT_DIR} is complete (--overwrite trains it anew)")
        else:
            todo.append(cfg)
    if len(cfgs) > 1 and todo:
        SideBySide(build_runs(todo)).train()
    elif todo:
        start_log(todo[0])
        seed_generators(todo[0])
        build_trainer(todo[0]).train()


def seed_generators(cfg) -> None:
    """Draw samples and initial values from SEED; a negative one stays random."""
    from dassl.utils import set_random_seed

    if cfg.SEED >= 0:
        print(f"Setting fixed seed: {cfg.SEED}")
        set_random_seed(cfg.SEED)


def build(cfgs: list) -> None:
    """Build everything, write nothing."""
    from dassl.engine import build_trainer
    from tuning.multi_seed import SideBySide, build_runs, check_folders

    if len(cfgs) > 1:
        check_folders(cfgs)
        SideBySide(build_runs(cfgs, logs=False))
        return
    seed_generators(cfgs[0])
    build_trainer(cfgs[0])


def evaluate(runs: list, cfgs: list) -> None:
    """Test the models of other runs, one after the other."""
    from tuning.multi_seed import check_folders

    check_folders(cfgs)
    failed = []
    for (args, seed), cfg in zip(runs, cfgs, strict=True):
        folder = args.model_dir if seed is None else of_seed(args.model_dir, seed)
        if len(runs) == 1:
            return evaluate_one(cfg, folder, args.load_epoch)
        try:
            evaluate_one(cfg, folder, args.load_epoch, among_several=True)
        except UserError as error:  # the others' business isn't this one's
            print(f"{cfg.OUTPUT_DIR}: {error}")
            failed.append(error)
    if failed:
        raise UserError(f"{len(failed)} of {len(runs)} runs could not be tested: {failed[0]}")


def evaluate_one(cfg, folder: str, epoch: int | None, among_several: bool = False) -> None:
    """Test the model of the run in `folder`, unless that is done."""
    from contextlib import nullcontext

    from dassl.engine import TRAINER_REGISTRY, build_trainer, start_log
    from tuning.multi_seed import own_log
    from tuning.run import standing, tested_file

    trains = TRAINER_REGISTRY.get(cfg.TRAINER.NAME).trains
    tested = tested_file(cfg, folder, epoch) if trains else None
    if standing(cfg, tested) == "complete":
        print(f"{cfg.OUTPUT_DIR} is complete (--overwrite tests anew)")
        return
    if not among_several:
        start_log(cfg)
        seed_generators(cfg)
    with own_log(cfg) if among_several else nullcontext():
        # The one before lives until this one is built: they share the frozen towers.
        trainer = build_trainer(cfg)
        trainer.load_model(folder, epoch=epoch)
        trainer.final_test()


if __name__ == "__main__":
    with user_errors(f"interrupted; {GOES_ON}"):
        heed_signals()
        main()
