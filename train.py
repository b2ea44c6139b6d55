"""One run: merge the config, build the trainer, train, test.

    python train.py --trainer DePT_CoOp --root DATA \\
        --dataset-config-file configs/datasets/oxford_pets.yaml \\
        --config-file configs/trainers/DePT_CoOp/vit_b16_ep10.yaml \\
        DATASET.NUM_SHOTS 16 DATASET.SUBSAMPLE_CLASSES base

Several runs in one process: `--seed 1 2 3` trains the seeds side by side, each in OUTPUT_DIR/seedN.
`… --and WORDS --and WORDS` adds runs: the first one's options, changed by WORDS. Those trained side
by side may differ in seed, folder and TRAINER.DEPT.WEIGHT; with --eval-only, in anything.
"""

from __future__ import annotations

import os
import sys

from dassl.utils import GOES_ON, UserError, heed_signals, user_errors
from tuning.options import check_cfg, of_seed, parse_runs, setup_cfg

# Threads that wait by sleeping: where another process has a core, spinning ones made a step of the
# mini world many times slower. Read when torch is loaded, so set before.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


def main(argv: list[str] | None = None) -> None:
    words = sys.argv[1:] if argv is None else list(map(str, argv))
    lines = parse_runs(words, description=__doc__)
    # Each run: its options, and its seed if it is one of several in one folder.
    runs = [(args, seed) for args in lines for seed in (args.seed if args.seed[1:] else [None])]
    cfgs = [setup_cfg(*run) for run in runs]

    from dassl.data import check_images
    from dassl.engine import TRAINER_REGISTRY, build_trainer, start_log
    from dassl.utils import set_random_seed

    for cfg in cfgs:
        if cfg.TRAINER.NAME:
            TRAINER_REGISTRY.get(cfg.TRAINER.NAME)
        check_cfg(cfg)
    import datasets  # noqa: F401  (its modules register the data sets)

    if checked := [cfg for (args, _), cfg in zip(runs, cfgs, strict=True) if args.check_images]:
        check_images(checked)
    if len(runs) > 1:
        return run_several(runs, cfgs)
    (args,), (cfg,) = lines, cfgs
    if not args.no_train:
        start_log(cfg, train=not args.eval_only)
    if cfg.SEED >= 0:
        print(f"Setting fixed seed: {cfg.SEED}")
        set_random_seed(cfg.SEED)
    trainer = build_trainer(cfg)
    if args.eval_only:
        trainer.load_model(args.model_dir, epoch=args.load_epoch)
        trainer.final_test()
    elif not args.no_train:
        trainer.train()


def run_several(runs: list, cfgs: list) -> None:
    """Runs that are trained as one, or tested one after the other."""
    from dassl.engine import build_trainer
    from tuning.multi_seed import SideBySide, build_runs, check_folders, own_log, to_do

    first, _ = runs[0]
    check_folders(cfgs)
    if not first.eval_only:
        side_by_side = SideBySide(build_runs(to_do(cfgs), logs=not first.no_train))
        if not first.no_train:
            side_by_side.train()
        return
    failed = []
    for (args, seed), cfg in zip(runs, cfgs, strict=True):
        try:
            with own_log(cfg, train=False):
                # The one before lives until this one is built: they share the frozen towers.
                trainer = build_trainer(cfg)
                folder = args.model_dir if seed is None else of_seed(args.model_dir, seed)
                trainer.load_model(folder, epoch=args.load_epoch)
                trainer.final_test()
        except UserError as error:  # the others' business isn't this one's
            print(f"{cfg.OUTPUT_DIR}: {error}")
            failed.append(error)
    if failed:
        raise UserError(f"{len(failed)} of {len(runs)} runs could not be tested: {failed[0]}")


if __name__ == "__main__":
    with user_errors(f"interrupted; {GOES_ON}"):
        heed_signals()
        main()
