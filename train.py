"""One run: merge the config, build the trainer, train, test.

    python train.py --trainer DePT_CoOp --root DATA \\
        --dataset-config-file configs/datasets/oxford_pets.yaml \\
        --config-file configs/trainers/DePT_CoOp/vit_b16_ep10.yaml \\
        DATASET.NUM_SHOTS 16 DATASET.SUBSAMPLE_CLASSES base
"""

from __future__ import annotations

import argparse
import os
import re
import sys

from dassl.utils import UserError, user_errors

# Threads that wait by sleeping: where another process has a core, spinning ones made a step of the
# mini world many times slower. Read when torch is loaded, so set before.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


class Parser(argparse.ArgumentParser):
    """A parser whose complaints are one line, as all of this program's."""

    def error(self, message: str) -> None:
        raise UserError(f"{message} (python {self.prog} --help lists the options)")


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
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
        help="draws samples and initial values; -1: random; several runs are trained side by side, "
        "each in OUTPUT_DIR/seedN",
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
    return parser.parse_intermixed_args(_join_seeds(sys.argv[1:] if argv is None else argv))


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


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    cfg = setup_cfg(args)

    from dassl.engine import TRAINER_REGISTRY, build_trainer, start_log
    from dassl.utils import set_random_seed

    if cfg.TRAINER.NAME:
        TRAINER_REGISTRY.get(cfg.TRAINER.NAME)
    check_cfg(cfg)
    import datasets  # noqa: F401  (its modules register the data sets)

    if len(args.seed) > 1:
        return run_side_by_side(args)
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


def run_side_by_side(args: argparse.Namespace) -> None:
    """The runs of several seeds: trained as one, tested one after the other."""
    from trainers.side_by_side import SideBySide, build_runs

    cfgs = [setup_cfg(args, seed) for seed in args.seed]
    side_by_side = SideBySide(build_runs(cfgs, train=not args.eval_only))
    if args.eval_only:
        for run in side_by_side.each():
            run.load_model(of_seed(args.model_dir, run.cfg.SEED), epoch=args.load_epoch)
            run.final_test()
    elif not args.no_train:
        side_by_side.train()


if __name__ == "__main__":
    with user_errors():
        main()
