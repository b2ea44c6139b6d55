"""The options of train.py, and the config they make."""

from __future__ import annotations

import argparse
import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path

from dassl.utils import UserError
from dassl.utils.cli import Parser
from tuning.defaults import default_cfg, read_config


def parse_args(
    argv: list[str] | None = None,
    like: argparse.Namespace | None = None,
    description: str = "",
) -> argparse.Namespace:
    """The options of a run; those not given are as in `like`, whose KEY VALUE pairs come first.

    description: what `--help` says above them.
    """
    parser = Parser(
        description=description,
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
    add("--overwrite", action="store_true", help="replace what another run left in --output-dir")
    add("--eval-only", action="store_true", help="test the model of --model-dir, don't train")
    add("--model-dir", default="", help="the folder of the run to test")
    add("--load-epoch", type=int, help="the epoch to test (default: the last, or the best)")
    add("--list", action="store_true", help="name the trainers and the data sets, and end")
    add("--no-train", action="store_true", help="build everything, train and test nothing")
    add("--check-images", action="store_true", help="decode all images first, then go on")
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


def setup_cfg(args: argparse.Namespace, seed: int | None = None, tell: bool = True):
    """Defaults, then the data set's file, the trainer's file, the options, KEY VALUE pairs.

    An evaluation begins with the config of the run that it tests, in place of the defaults; what
    the options change of it is printed (`tell`). `seed` is one of several; its run gets a folder of
    its own.
    """
    from dassl.engine import TRAINER_REGISTRY

    cfg = default_cfg()
    tested = _config_of(args, seed) if args.eval_only else None
    if tested is not None:
        cfg = tested.clone()
    if args.dataset_config_file:
        cfg.DATASET.LABEL = Path(args.dataset_config_file).stem
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
    cfg.OVERWRITE = cfg.OVERWRITE or args.overwrite
    cfg.DATASET.ROOT = cfg.DATASET.ROOT or "data"
    if cfg.TRAINER.NAME in TRAINER_REGISTRY:
        resolve = getattr(TRAINER_REGISTRY.get(cfg.TRAINER.NAME), "resolve_cfg", None)
        if resolve is not None:  # a trainer made for Dassl has none
            resolve(cfg)
    if seed is not None:
        cfg.OUTPUT_DIR = of_seed(cfg.OUTPUT_DIR, seed)
        cfg.RESUME = of_seed(cfg.RESUME, seed)
    cfg.freeze()
    if tested is not None and tell:
        _tell_changes(tested, cfg)
    return cfg


def _config_of(args: argparse.Namespace, seed: int | None):
    """The config of the run in --model-dir, without its folder; None if it has none."""
    if not args.model_dir:
        return None
    folder = of_seed(args.model_dir, seed) if seed is not None else args.model_dir
    if not os.path.isfile(os.path.join(folder, "config.yaml")):
        return None  # a run of other code
    return read_config(folder)


def _tell_changes(tested, cfg) -> None:
    """Print how an evaluation's settings differ from those of the run it tests."""
    from dassl.config import config_values

    before = config_values(tested)
    changed = [(key, value) for key, value in config_values(cfg).items() if value != before[key]]
    if changed:
        told = ", ".join(f"{key} {before[key]} -> {value}" for key, value in changed)
        print(f"Unlike the run that is tested: {told}")


def of_seed(folder: str, seed: int) -> str:
    """Where one of several runs lies in their common folder; "" stays ""."""
    return os.path.join(folder, f"seed{seed}") if folder else ""


def check_args(args: argparse.Namespace, trains: bool) -> None:
    """Refuse options that don't go together.

    trains: whether the trainer has anything to train.

    Raises:
        UserError: an evaluation without a model, or a model without an evaluation.
    """
    if args.eval_only and not args.model_dir and trains:
        raise UserError("--eval-only tests a trained model: say whose, --model-dir RUN")
    if args.model_dir and not args.eval_only:
        raise UserError(
            "--model-dir names a model to test, with --eval-only; to train from its weights, set "
            "MODEL.INIT_WEIGHTS to its checkpoint file"
        )


def check_cfg(cfg) -> None:
    """Name what a run can't do without or can't use, before anything slow happens."""
    from dassl.config import check_values

    for key, value, option in (
        ("TRAINER.NAME", cfg.TRAINER.NAME, "--trainer"),
        ("DATASET.NAME", cfg.DATASET.NAME, "--dataset-config-file"),
        ("MODEL.BACKBONE.NAME", cfg.MODEL.BACKBONE.NAME, "--config-file or --backbone"),
    ):
        if not value:
            raise UserError(f"{key} is not set: say {option}")
    check_values(cfg)


def parse_runs(words: Sequence[str], description: str = "") -> list[argparse.Namespace]:
    """The options of each run of `FIRST --and A --and B`: FIRST's, FIRST's with A's, with B's.

    Raises:
        UserError: some of them are to be trained, and some not.
    """
    ends = [i for i, word in enumerate(words) if word == "--and"]
    parts = [list(words[a + 1 : b]) for a, b in zip([-1, *ends], [*ends, len(words)], strict=True)]
    first = parse_args(parts[0], description=description)
    lines = [first, *(parse_args(part, like=first) for part in parts[1:])]
    if any((args.eval_only, args.no_train) != (first.eval_only, first.no_train) for args in lines):
        raise UserError(
            "--eval-only and --no-train are for all runs or none: before the first --and"
        )
    return lines
