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

import argparse
import os
import re
import sys
from collections.abc import Sequence

from dassl.utils import GOES_ON, UserError, heed_signals, user_errors

# Threads that wait by sleeping: where another process has a core, spinning ones made a step of the
# mini world many times slower. Read when torch is loaded, so set before.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


class Parser(argparse.ArgumentParser):
    """A parser whose complaints are one line, as all of this program's."""

    def error(self, message: str) -> None:
        raise UserError(f"{message} (python {self.prog} --help lists the options)")


def parse_args(
    argv: list[str] | None = None, like: argparse.Namespace | None = None
) -> argparse.Namespace:
    """The options of a run; those not given are as in `like`, whose KEY VALUE pairs come first."""
    parser = Parser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--root", default="", help="the folder that holds the data sets (default: data)")
    add("--output-dir", default="", help="the run's folder (default: output)")
    add(
        "--seed",
        type=_seeds,
        default=[None],
        metavar="N [N ...]",
        help="draws samples and initial values; -1: random",
    )
    add("--trainer", default="", help="a registered trainer, such as CoOp or DePT_CoOp")
    add("--dataset-config-file", default="", help="configs/datasets/NAME.yaml")
    add("--config-file", default="", help="configs/trainers/TRAINER/SCHEDULE.yaml")
    add("--resume", default="", help="the folder of a run that was interrupted, to go on from")
    add("--transforms", nargs="+", help="the training transforms, instead of the config's")
    add("--backbone", default="", help="a CLIP model's name or a checkpoint file")
    add("--head", default="", help="the model's head (MODEL.HEAD.NAME)")
    add("--eval-only", action="store_true", help="test the model of --model-dir, don't train")
    add("--model-dir", default="", help="the folder of the run to test")
    add("--load-epoch", type=int, help="the epoch to test (default: the last, or the best)")
    add("--no-train", action="store_true", help="build everything, train and test nothing")
    add("--no-cache", action="store_true", help="neither read nor write cached image features")
    add("opts", nargs="*", metavar="KEY VALUE", help="config keys, such as DATASET.NUM_SHOTS 16")
    # KEY VALUE pairs may stand between options: whatever isn't an option is one.
    words = _join_seeds(sys.argv[1:] if argv is None else argv)
    if like is None:
        return parser.parse_intermixed_args(words)
    given = {name: value for name, value in vars(like).items() if name != "opts"}
    args = parser.parse_intermixed_args(words, argparse.Namespace(**given))
    args.opts = like.opts + args.opts
    return args


def _join_seeds(words: list[str]) -> list[str]:
    """`--seed 1 2 3` as `--seed=1,2,3`: the seeds end where the whole numbers do."""
    joined: list[str] = []
    counting = False
    for word in map(str, words):
        number = re.fullmatch(r"-?\d+", word) is not None
        if counting and number:
            joined[-1] += ("," if joined[-1][-1] != "=" else "") + word
            continue
        if counting and joined[-1] == "--seed=":
            joined[-1] += word  # not a number: said so by `_seeds`
            counting = False
            continue
        counting = word == "--seed"
        joined.append("--seed=" if counting else word)
    return joined


def _seeds(text: str) -> list[int]:
    try:
        seeds = [int(part) for part in text.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number") from None
    if len(set(seeds)) < len(seeds) or (len(seeds) > 1 and min(seeds) < 0):
        raise argparse.ArgumentTypeError(f"several seeds must differ and not be negative: {text}")
    return seeds


def setup_cfg(args: argparse.Namespace, seed: int | None = None):
    """Defaults, then the data set's file, the trainer's file, the options, KEY VALUE pairs.

    `seed` is one of several; its run gets a folder of its own.
    """
    import trainers
    from dassl.config import get_cfg_default

    cfg = get_cfg_default()
    trainers.extend_cfg(cfg)
    if args.dataset_config_file:
        cfg.merge_from_file(args.dataset_config_file)
    if args.config_file:
        cfg.merge_from_file(args.config_file)
    for value, key in (
        (args.root, "DATASET.ROOT"),
        (args.output_dir, "OUTPUT_DIR"),
        (args.resume, "RESUME"),
        (args.seed[0] if seed is None else seed, "SEED"),
        (args.transforms, "INPUT.TRANSFORMS"),
        (args.trainer, "TRAINER.NAME"),
        (args.backbone, "MODEL.BACKBONE.NAME"),
        (args.head, "MODEL.HEAD.NAME"),
    ):
        if value not in (None, ""):
            cfg.merge_from_list([key, value])
    cfg.merge_from_list(args.opts)
    if args.no_cache:
        cfg.DATALOADER.FEATURE_CACHE = ""
    cfg.DATASET.ROOT = cfg.DATASET.ROOT or "data"
    if seed is not None:
        cfg.OUTPUT_DIR = of_seed(cfg.OUTPUT_DIR, seed)
        cfg.RESUME = of_seed(cfg.RESUME, seed)
    cfg.freeze()
    return cfg


def of_seed(folder: str, seed: int) -> str:
    """Where one of several runs lies in their common folder; "" stays ""."""
    return os.path.join(folder, f"seed{seed}") if folder else ""


def check_cfg(cfg) -> None:
    """Name what a run can't do without, before anything slow happens."""
    for key, value, option in (
        ("TRAINER.NAME", cfg.TRAINER.NAME, "--trainer"),
        ("DATASET.NAME", cfg.DATASET.NAME, "--dataset-config-file"),
        ("MODEL.BACKBONE.NAME", cfg.MODEL.BACKBONE.NAME, "--config-file or --backbone"),
    ):
        if not value:
            raise UserError(f"{key} is not set: say {option}")


def parse_runs(words: Sequence[str]) -> list[argparse.Namespace]:
    """The options of each run of `FIRST --and A --and B`: FIRST's, FIRST's with A's, with B's.

    Raises:
        UserError: some of them are to be trained, and some not.
    """
    ends = [i for i, word in enumerate(words) if word == "--and"]
    parts = [list(words[a + 1 : b]) for a, b in zip([-1, *ends], [*ends, len(words)], strict=True)]
    first = parse_args(parts[0])
    lines = [first, *(parse_args(part, like=first) for part in parts[1:])]
    if any((args.eval_only, args.no_train) != (first.eval_only, first.no_train) for args in lines):
        raise UserError(
            "--eval-only and --no-train are for all runs or none: before the first --and"
        )
    return lines


def main(argv: list[str] | None = None) -> None:
    lines = parse_runs(sys.argv[1:] if argv is None else list(map(str, argv)))
    # Each run: its options, and its seed if it is one of several in one folder.
    runs = [(args, seed) for args in lines for seed in (args.seed if args.seed[1:] else [None])]
    cfgs = [setup_cfg(*run) for run in runs]

    from dassl.engine import TRAINER_REGISTRY, build_trainer, start_log
    from dassl.utils import set_random_seed

    for cfg in cfgs:
        if cfg.TRAINER.NAME:
            TRAINER_REGISTRY.get(cfg.TRAINER.NAME)
        check_cfg(cfg)
    import datasets  # noqa: F401  (its modules register the data sets)

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


def run_several(runs: list[tuple[argparse.Namespace, int | None]], cfgs: list) -> None:
    """Runs that are trained as one, or tested one after the other."""
    from dassl.engine import build_trainer
    from trainers.side_by_side import SideBySide, build_runs, check_folders, own_log, to_do

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
