#!/usr/bin/env python3
"""What the protocols of docs/reproduce.md cost: steps, images, arithmetic; hours on this machine.

    python benchmarks/hours.py --count                          steps and images; seconds
    python benchmarks/hours.py --count --arithmetic             and operations; minutes
    python benchmarks/hours.py --precision fp16 --markdown      and hours, here on a GPU
    python benchmarks/hours.py --protocols base_to_new --trainers MaPLe DePT_MaPLe --seeds 1

It counts what the runs of `run_protocol.py` do, each protocol from nothing: training steps, views
to encode, test images. It measures what one of each costs here, with random weights in the released
shapes, and multiplies. Neither data sets nor released weights are needed.

A training's steps are epochs × ⌊classes × shots / batch⌋ (at least one an epoch), unless its config
counts iterations; a protocol's are the sum over its trainers, data sets, seeds and shots.

The cost of a step, or of the text features at a test, is affine in the number of classes: so much
for what all classes share, and so much for each. It is measured at two numbers of them, with the
options of the method's usual configuration and its batch, also where there are fewer images.
Features of an image tower that nothing trained enters are encoded once and then taken from the
cache, whichever run comes first.

Runs go one after another, every view is decoded anew, and nothing goes on beside that: an upper
bound, where several runs train at once and loaders keep up. Left out are the start of a run
(seconds), slow disks, and the product of image and text features.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import math
import os
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from PIL import Image

from benchmarks import timing
from benchmarks.method_setup import SIZES, MethodSetup, Settings, images
from benchmarks.work import TEST_JPEG, TRAINING_JPEG, VIEW, Unit, backbones, plan_of, works_of
from clip.model import CLIP
from dassl.config import CfgNode
from dassl.data.transforms import build_transform
from dassl.utils import UserError, read_image, user_errors, write_json
from dassl.utils.cli import Parser, markdown_table, output_file, seed_list
from experiments.protocols import PROTOCOLS, ROOT
from tuning.loading import resolve_precision

JPEG = (500, 375)  # width and height of the image that is decoded, in pixels
COLUMNS = ("protocol", "trainers", "runs", "steps", "images encoded", "PFLOP", "hours")


class Cost(NamedTuple):
    """Of one unit: seconds, and 1e9 operations."""

    seconds: float
    gflop: float


# --- What it costs ----------------------------------------------------------------------------


def cost(call: Callable[[], object], repeats: int, device: torch.device, of: int = 1) -> Cost:
    """Of one of the `of` units that a call does; the call that counts operations is not timed.

    repeats: timed calls; 0: its seconds are NaN.
    """
    gflop = timing.gflop(call)
    if not repeats:
        return Cost(math.nan, gflop / of)
    seconds = timing.interleaved({"": call}, repeats, device, warm=True)[""].wall
    return Cost(seconds / of, gflop / of)


def affine(measured: dict[int, Cost], classes: int) -> Cost:
    """The cost with `classes`, on the line through the costs measured at two numbers of them."""
    (fewer, low), (more, high) = sorted(measured.items())
    reach = (classes - fewer) / (more - fewer)
    # Noise may tilt the line the wrong way; nothing costs less with more classes, or less than 0.
    return Cost(*(max(a + max(b - a, 0) * reach, 0) for a, b in zip(low, high, strict=True)))


def method_costs(
    args: argparse.Namespace, model: CLIP, trainer: str, batch: int
) -> dict[str, dict[int, Cost]]:
    """Of a trainer's step, text features and test image, by number of classes."""
    costs: dict[str, dict[int, Cost]] = {"step": {}, "text": {}, "test image": {}}
    device = model.logit_scale.device
    given: tuple = ()
    for classes in args.classes:
        settings = Settings(trainer, args.backbone, classes, batch, args.precision)
        setup = MethodSetup(settings, model, fast=True)
        text = partial(setup.score, setup.encoded(1), fresh=True)
        costs["text"][classes] = cost(text, args.repeats, device)
        if setup.trains:
            if setup.features_for_images:  # one image's, as batches of them may be large
                given = given or (setup.encode(images(1, model)).repeat(batch, 1), {})
            # The same, however many classes there are.
            given = given or setup.ahead(images(batch, model))
            label = torch.arange(batch, device=device) % classes
            step = partial(setup.step, given[0], label, given[1])
            costs["step"][classes] = cost(step, args.repeats, device)
    if not setup.features_for_images:
        many = images(args.images or setup.views_at_once, model)
        one = cost(partial(setup.encode_tested, many), args.repeats, device, len(many))
        costs["test image"] = dict.fromkeys(args.classes, one)
    return {what: measured for what, measured in costs.items() if measured}


def view_cost(args: argparse.Namespace, model: CLIP, trainer: str) -> Cost:
    """Of a view through the untouched tower, many at a time."""
    setup = MethodSetup(Settings(trainer, args.backbone, 2, 1, args.precision), model, fast=True)
    many = images(args.images or setup.views_at_once, model)
    return cost(partial(setup.encode, many), args.repeats, setup.device, len(many))


def decoding_cost(cfg: CfgNode, is_train: bool, repeats: int, cores: int) -> Cost:
    """Of reading and transforming a photograph-sized JPEG on so many cores."""
    with contextlib.redirect_stdout(io.StringIO()):
        transform = build_transform(cfg, is_train)
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(256, (30, 40, 3), generator=generator, dtype=torch.uint8).numpy()
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "image.jpg")
        Image.fromarray(pixels).resize(JPEG, Image.Resampling.BICUBIC).save(path, quality=90)

        def read() -> None:
            for _ in range(10):
                transform(read_image(path))

        return cost(read, repeats, torch.device("cpu"), 10 * cores)


def costs_of(
    units: Iterable[Unit], args: argparse.Namespace, cfg: CfgNode, cores: int
) -> dict[Unit, Cost]:
    """What each unit costs on this machine; prints each thing it measures. cfg: of any run."""
    units = sorted(units)
    model = Settings("", args.backbone, precision=args.precision).model()
    costs = {
        unit: decoding_cost(cfg, unit is TRAINING_JPEG, args.repeats, cores)
        for unit in (TRAINING_JPEG, TEST_JPEG)
    }
    if VIEW in units:
        costs[VIEW] = view_cost(args, model, cfg.TRAINER.NAME)
    for unit in costs:
        print(f"{unit.what}: {_told(costs[unit])}", flush=True)
    for trainer, batch in sorted({(unit.trainer, unit.batch) for unit in units if unit.trainer}):
        measured = method_costs(args, model, trainer, batch)
        for what, by_classes in measured.items():
            points = "; ".join(f"C = {c}: {_told(each)}" for c, each in by_classes.items())
            print(f"{trainer}, batch {batch}, {what}: {points}", flush=True)
        for unit in units:
            if (unit.trainer, unit.batch) == (trainer, batch):
                costs[unit] = affine(measured[unit.what], unit.classes)
    return costs


# --- What comes out ---------------------------------------------------------------------------


def summary(work: Counter[Unit], costs: dict[Unit, Cost]) -> dict[str, Any]:
    """Steps and images encoded of all that is to be done.

    With costs PFLOP too; if they were timed, hours, also by part.
    """
    row: dict[str, Any] = {
        "steps": sum(number for unit, number in work.items() if unit.what == "step"),
        "images encoded": sum(n for unit, n in work.items() if unit.what in ("view", "test image")),
    }
    if not costs:
        return row
    row["PFLOP"] = sum(number * costs[unit].gflop for unit, number in work.items()) / 1e6
    by_part: Counter[str] = Counter()
    for unit, number in work.items():
        by_part[unit.what] += number * costs[unit].seconds / 3600
    if any(map(math.isnan, by_part.values())):
        return row
    return {**row, "hours": sum(by_part.values()), "hours by part": dict(by_part)}


def table(rows: list[dict[str, Any]], columns: Sequence[str], markdown: bool = False) -> str:
    """The columns of the rows, for a terminal or a page."""
    cells = [columns, *([_cell(row.get(column, "–")) for column in columns] for row in rows)]
    if markdown:
        return markdown_table(cells, heads=2)
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if i < 2 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in cells
    )


def _cell(value: str | int | float) -> str:
    if isinstance(value, float):
        return f"{value:,.0f}" if value >= 100 else f"{value:.2g}"
    return f"{value:,}" if isinstance(value, int) else value


def _measured(cost: Cost) -> dict[str, float]:
    return {name: value for name, value in cost._asdict().items() if not math.isnan(value)}


def _told(cost: Cost) -> str:
    seconds = f"{cost.seconds:.3g} s, " if "seconds" in _measured(cost) else ""
    return f"{seconds}{cost.gflop:.3g} GFLOP"


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Read the command line. Raises UserError for a value that makes no sense."""
    parser = Parser(
        prog="hours.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--protocols", nargs="+", choices=PROTOCOLS, default=list(PROTOCOLS), help="(all)")
    add("--trainers", nargs="+", help="names under configs/trainers (each protocol's own)")
    add("--datasets", nargs="+", help="names under configs/datasets (each protocol's own)")
    add("--seeds", nargs="+", type=seed_list, help="such as 1-3 (each protocol's own)")
    add("--shots", nargs="+", type=int, help="images per class (each protocol's own)")
    add("--count", action="store_true", help="measure nothing: steps and images alone")
    add("--arithmetic", action="store_true", help="with --count: operations too")
    add("--backbone", default="ViT-B/16", help=f"shapes of the towers: {', '.join(SIZES)}")
    add("--precision", default="fp32", help="fp32, bf16, or on a GPU fp16, amp")
    add("--repeats", type=int, default=3, help="timed calls, after one untimed (3)")
    add("--classes", nargs=2, type=int, default=[10, 100], help="numbers measured at (10 100)")
    add("--images", type=int, help="encoded at once (as many as training does)")
    add("--loaders", type=int, help="cores that decode (as the config says, or all there are)")
    add(
        "--json",
        type=output_file,
        metavar="FILE",
        help="write everything counted and measured there",
    )
    add("--markdown", action="store_true", help="print the table for a page")
    args = parser.parse_args(argv)
    if args.backbone not in SIZES:
        raise UserError(f"unknown backbone {args.backbone!r}; one of: {', '.join(SIZES)}")
    counts = (args.repeats, args.images, args.loaders, *args.classes, *(args.shots or ()))
    if min(number for number in counts if number is not None) < 1:
        raise UserError("--repeats, --classes, --images, --loaders and --shots: from 1")
    if args.arithmetic and not args.count:
        raise UserError("--arithmetic is for --count: without it operations are counted anyway")
    if args.count:
        args.repeats = 0
    if args.classes[0] == args.classes[1]:
        raise UserError("--classes takes two different numbers: the line through both is wanted")
    return args


def main(argv: list[str] | None = None) -> dict[str, Any]:
    """Count, measure, print; return what --json writes."""
    args = parse_args(argv)
    file = os.path.abspath(args.json) if args.json else ""
    os.chdir(ROOT)  # the plans' configs are named from there
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    args.precision = resolve_precision(args.precision, device, "--precision")
    result: dict[str, Any] = {
        "device": timing.device_name(device),
        "threads": torch.get_num_threads(),
        "precision": args.precision,
        "torch": torch.__version__,
        "backbone": args.backbone,
    }
    print(", ".join(f"{name} {value}" for name, value in result.items()), flush=True)
    every = {name: plan_of(name, args) for name in args.protocols}
    # What a run costs where a teacher stands on a backbone of its own is not known here.
    plans = {name: plan for name, plan in every.items() if len(backbones(plan[1])) == 1}
    if len(plans) > 1:  # protocols share runs, such as the model that both transfers test
        together = {folder: run for _, runs in plans.values() for folder, run in runs.items()}
        plans["all of these"] = ([], together)
    counted = {name: plan for name, plan in every.items() if name not in plans}
    plans |= counted
    works = works_of({name: runs for name, (_, runs) in plans.items()})
    costs = {}
    if args.arithmetic or not args.count:
        first = next(iter(plans[args.protocols[0]][1].values())).cfg
        loaders = args.loaders or min(max(1, first.DATALOADER.NUM_WORKERS), os.cpu_count())
        result["loaders"] = loaders
        units = set().union(*(work for name, work in works.items() if name not in counted))
        costs = costs_of(units, args, first, loaders)
    if costs and counted:
        print(f"{', '.join(counted)}: on several backbones, only counted", flush=True)
    result["costs"] = [{**unit._asdict(), **_measured(each)} for unit, each in costs.items()]
    result["rows"] = [
        {"protocol": name, "trainers": ", ".join(trainers), "runs": len(runs)}
        | summary(works[name], {} if name in counted else costs)
        for name, (trainers, runs) in plans.items()
    ]
    columns = [name for name in COLUMNS if any(name in row for row in result["rows"])]
    print(f"\n{table(result['rows'], columns, args.markdown)}")
    if file:
        write_json(result, file)
    return result


if __name__ == "__main__":
    with user_errors():
        main()
