"""One run: merge the config, build the trainer, train, test.

    python train.py --trainer DePT_CoOp --root DATA \\
        --dataset-config-file configs/datasets/oxford_pets.yaml \\
        --config-file configs/trainers/DePT_CoOp/vit_b16_ep10.yaml \\
        DATASET.NUM_SHOTS 16 DATASET.SUBSAMPLE_CLASSES base
"""

from __future__ import annotations

import argparse

from dassl.utils import UserError, user_errors


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
    add("--seed", type=int, default=None, help="draws samples and initial values; -1: random")
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
    add("opts", nargs="*", metavar="KEY VALUE", help="config keys, such as DATASET.NUM_SHOTS 16")
    # KEY VALUE pairs may stand between options: whatever isn't an option is one.
    return parser.parse_intermixed_args(argv)


def setup_cfg(args: argparse.Namespace):
    """Defaults, then the data set's file, the trainer's file, the options, KEY VALUE pairs."""
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
        (args.seed, "SEED"),
        (args.transforms, "INPUT.TRANSFORMS"),
        (args.trainer, "TRAINER.NAME"),
        (args.backbone, "MODEL.BACKBONE.NAME"),
        (args.head, "MODEL.HEAD.NAME"),
    ):
        if value not in (None, ""):
            cfg.merge_from_list([key, value])
    cfg.merge_from_list(args.opts)
    cfg.DATASET.ROOT = cfg.DATASET.ROOT or "data"
    cfg.freeze()
    return cfg


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


if __name__ == "__main__":
    with user_errors():
        main()
