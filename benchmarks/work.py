"""What the runs of protocols do: training steps, images through the towers, images decoded.

A training's steps are epochs × ⌊classes × shots / batch⌋ (at least one an epoch), unless its config
counts iterations. Features of an image tower that nothing trained enters are encoded once, and then
taken from the cache, whichever run comes first.
"""

from __future__ import annotations

import argparse
import math
from collections import Counter
from collections.abc import Iterable, Mapping
from itertools import chain
from pathlib import Path
from typing import NamedTuple

import datasets  # noqa: F401  (its modules register the data sets)
from benchmarks.method_setup import MethodSetup, Settings
from dassl.config import CfgNode
from dassl.config.severities import OF_IMAGES
from dassl.data.datasets import DATASET_REGISTRY
from dassl.engine import TRAINER_REGISTRY
from dassl.utils import UserError
from experiments.chains import Chain
from experiments.protocols import PROTOCOLS, Plan
from tuning import options


class Unit(NamedTuple):
    """What runs do many times; a trainer where it differs between them, classes where it scales."""

    what: str
    trainer: str = ""
    batch: int = 0
    classes: int = 0


VIEW = Unit("view")  # an image through the tower that nothing trained enters
TRAINING_JPEG = Unit("training image, decoded")
TEST_JPEG = Unit("test image, decoded")


class PlannedRun(NamedTuple):
    """A run of train.py: its config but for seed and folder, and whether it tests another's."""

    cfg: CfgNode
    seed: int
    eval_only: bool


def plan_of(name: str, args: argparse.Namespace) -> tuple[list[str], dict[Path, PlannedRun]]:
    """The trainers of a protocol, and its runs by folder. Raises UserError for an unknown name."""
    protocol = PROTOCOLS[name]
    trainers = args.trainers or list(protocol.trainers)
    chains = protocol.chains(
        Plan(Path("data"), Path("output")),
        trainers,
        args.datasets or protocol.datasets,
        list(chain(*args.seeds)) if args.seeds else protocol.seeds,
        args.shots or protocol.shots,
    )
    return trainers, runs_of(chains)


def runs_of(chains: Iterable[Chain]) -> dict[Path, PlannedRun]:
    """The runs of a plan by folder; the same run twice is done once."""
    runs, configs = {}, {}  # configs take long, and most are the same
    for job in chain.from_iterable(each.jobs for each in chains):
        words = options.parse_args(list(job.arguments))
        (seed,), words.seed = words.seed, [0]
        words.output_dir = words.model_dir = ""
        key = repr(sorted(vars(words).items()))
        cfg = configs[key] = configs.get(key) or options.setup_cfg(words)
        runs[job.folder] = PlannedRun(cfg, seed, words.eval_only)
    return runs


def backbones(runs: Mapping[Path, PlannedRun]) -> set[str]:
    """The backbones that runs are on."""
    return {run.cfg.MODEL.BACKBONE.NAME for run in runs.values()}


def sizes_of(cfg: CfgNode) -> tuple[int, int, int]:
    """Classes, training images and test images of a run, from what its data set's reader states.

    Images of base or new classes: their share of the classes. Raises UserError if nothing is
    stated.
    """
    sizes = getattr(DATASET_REGISTRY.get(cfg.DATASET.NAME), "sizes", None)
    if not sizes:
        raise UserError(f"{cfg.DATASET.NAME} doesn't state its sizes: its runs can't be counted")
    classes, training, _, tested = sizes
    base = math.ceil(classes / 2)
    chosen = {"all": classes, "base": base, "new": classes - base}[cfg.DATASET.SUBSAMPLE_CLASSES]
    shots, share = cfg.DATASET.NUM_SHOTS, chosen / classes
    training = round(training * share)
    return chosen, min(shots * chosen, training) if shots > 0 else training, round(tested * share)


def kinds(trainers: Iterable[str]) -> dict[str, MethodSetup]:
    """A small setup of each trainer: it knows what is trained, and what can be kept."""
    model = Settings("", "tiny").model()
    return {
        name: MethodSetup(Settings(name, "tiny", classes=2), model, fast=True)
        for name in sorted(set(trainers))
    }


def count(run: PlannedRun, method: MethodSetup, cached: set[tuple]) -> Counter[Unit]:
    """How often a run does what.

    Args:
        run: one of a plan.
        method: any setup of its trainer.
        cached: the passes over images whose features are at hand; this run's join them.
    """
    cfg = run.cfg
    name, batch = cfg.TRAINER.NAME, cfg.DATALOADER.TRAIN_X.BATCH_SIZE
    trainer = TRAINER_REGISTRY.get(name)
    classes, shown, tested = sizes_of(cfg)
    split: tuple = (cfg.DATASET.NAME, cfg.DATASET.SUBSAMPLE_CLASSES)
    work: Counter[Unit] = Counter()
    if not run.eval_only:
        batches = max(1, shown // batch)  # an incomplete last batch is left out, unless alone
        steps = trainer.steps_of(cfg, batches) if method.trains else 0
        if steps:
            work[Unit("step", name, batch, classes)] = steps
        before = trainer.passes_of(cfg, 0)  # of all images
        for each in before | trainer.passes_of(cfg, -(-steps // batches)):
            number = shown if each in before else min(shown, batches * batch)
            views = (*split, cfg.DATASET.NUM_SHOTS, run.seed, each)
            known = cached & {views, (*views, batch)}
            if method.features_for_images or method.features_with_images:
                work[VIEW] += 0 if known else number
                cached.add(views if number == shown else (*views, batch))
            if not (known and method.features_for_images):
                work[TRAINING_JPEG] += number
    if not cfg.TEST.NO_TEST:
        if cfg.TEST.CORRUPTION in OF_IMAGES:
            split = (*split, cfg.TEST.CORRUPTION, cfg.TEST.SEVERITY)
        if not (method.features_for_images and split in cached):
            work[TEST_JPEG] += tested
            work[VIEW if method.features_for_images else Unit("test image", name, batch)] += tested
        if method.features_for_images:
            cached.add(split)
        work[Unit("text", name, batch, classes)] += tested if method.text_per_image else 1
    return work


def with_stages(runs: Mapping[Path, PlannedRun]) -> dict[Path, PlannedRun]:
    """The runs, each after those it trains before its own first step."""
    found = {}
    for folder, run in runs.items():
        stages = TRAINER_REGISTRY.get(run.cfg.TRAINER.NAME).stages_of(run.cfg)
        for number, cfg in enumerate([] if run.eval_only else stages):
            found[folder / str(number)] = PlannedRun(cfg, run.seed, False)
        found[folder] = run
    return found


def works_of(plans: Mapping[str, Mapping[Path, PlannedRun]]) -> dict[str, Counter[Unit]]:
    """What each plan's runs, by folder, do together, from nothing."""
    plans = {name: with_stages(runs) for name, runs in plans.items()}
    methods = kinds(run.cfg.TRAINER.NAME for runs in plans.values() for run in runs.values())
    works: dict[str, Counter[Unit]] = {}
    for name, runs in plans.items():
        cached: set[tuple] = set()
        works[name] = Counter()
        for run in runs.values():
            works[name].update(count(run, methods[run.cfg.TRAINER.NAME], cached))
    return works
