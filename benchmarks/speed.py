#!/usr/bin/env python3
"""How fast training and evaluation are, beside the plain path in the same run.

    python benchmarks/speed.py                                  every method, ViT-B/16, 100 classes
    python benchmarks/speed.py --methods DePT_CoOp --classes 50
    python benchmarks/speed.py --full --json speed.json --plot speed.png
    python benchmarks/speed.py --methods DePT_CoOp --classes 1000 --only memory --fast-alone

Random weights in the released shapes: neither network nor data is needed. The two paths take turns,
times are medians, and every ratio is the plain path's value over the fast one's, of this run.
The plain path does what public code does: all 77 tokens of all classes at every step and at every
test batch, and every image through its tower when it is used.
"""

from __future__ import annotations

import argparse
import multiprocessing
import platform
import sys
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch

from benchmarks import process_timing, timing
from benchmarks.method_setup import SIZES, MethodSetup, Settings, images, method_names
from benchmarks.pair import Pair, against
from dassl.utils import UserError, peak_memory_mb, user_errors, write_json
from dassl.utils.cli import Parser, markdown_table, output_file

PARTS = ("steps", "evaluation", "memory", "runs")


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """The options; `argv` in place of the command line's words.

    Raises:
        UserError: a trainer or backbone that isn't there, a number below 1, options at odds.
    """
    parser = Parser(
        prog="speed.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--methods", nargs="+", metavar="NAME", help="registered trainers (all)")
    add("--backbone", default="ViT-B/16", help=f"shapes of the towers: {', '.join(SIZES)}")
    add("--classes", type=int, default=100)
    add("--batch", type=int, help="images per step (what each method's configuration says)")
    add("--test-batch", type=int, default=100, help="images per test batch (100)")
    add("--images", type=int, default=4, help="images encoded to time the image tower (4)")
    add("--tested", type=int, default=1000, help="images of the evaluation reported (1000)")
    add("--repeats", type=int, default=3, help="timed calls per path, after one untimed (3)")
    add("--precision", default="fp32", help="fp32, bf16, or on a GPU fp16, amp")
    add("--only", nargs="+", choices=PARTS, default=list(PARTS), help="what to measure (all)")
    add("--fast-alone", action="store_true", help="memory without the plain path, if too much")
    add(
        "--against",
        type=Path,
        metavar="DIR",
        help="also a public implementation of the methods: a folder of the CoOp family",
    )
    add("--full", action="store_true", help="also scaling in classes, batch and images")
    add("--json", type=output_file, metavar="FILE", help="write everything measured there")
    add("--plot", type=output_file, metavar="FILE", help="draw the ratios (png, pdf, svg)")
    add("--markdown", action="store_true", help="print the ratios as a table for a page")
    add("--set", nargs="+", default=[], metavar="KEY VALUE", help="config keys")
    args = parser.parse_args(argv)
    _check(args)
    return args


def _check(args: argparse.Namespace) -> None:
    """Raise UserError as `parse_args` says."""
    known = method_names()
    for name in args.methods or []:
        if name not in known:
            raise UserError(f"{name} is no registered trainer; one of: {', '.join(known)}")
    if args.backbone not in SIZES:
        raise UserError(f"unknown backbone {args.backbone!r}; one of: {', '.join(SIZES)}")
    counts = (
        args.classes,
        args.test_batch,
        args.images,
        args.tested,
        args.repeats,
        args.batch or 1,
    )
    if min(counts) < 1:
        raise UserError("--classes, --batch, --test-batch, --images, --tested, --repeats: from 1")
    if args.against is not None and not (args.against / "train.py").is_file():
        raise UserError(f"--against {args.against}: there is no train.py in it")
    if args.fast_alone and args.only != ["memory"]:
        raise UserError("--fast-alone compares nothing: it goes with --only memory")


def settings_of(args: argparse.Namespace, trainer: str) -> Settings:
    """What one method is measured with."""
    return Settings(
        trainer, args.backbone, args.classes, args.batch, args.precision, tuple(args.set)
    )


def _peak(settings: Settings, fast: bool) -> float:
    """Run in a process of its own: its peak memory in MB after one step, views encoded."""
    setup = MethodSetup(settings, settings.model(), fast)
    image = images(setup.batch, setup.model)
    label = torch.zeros(setup.batch, dtype=torch.long, device=setup.device)
    if setup.features_for_images or setup.features_with_images:
        setup.encode(images(setup.views_at_once, setup.model))
    given, known = setup.ahead(image)
    setup.step(given, label, known)
    return peak_memory_mb()


def memory(settings: Settings, fast_alone: bool = False) -> dict[str, Any]:
    """Peak memory of one training step on each path, each in a process of its own."""
    peaks: dict[str, float] = {}
    for path in ("plain", "fast")[fast_alone:]:
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(1, mp_context=context) as pool:
            peaks[path] = pool.submit(_peak, settings, path == "fast").result()
    return {"memory": against(peaks.get("plain"), peaks["fast"])}


def measure_method(args: argparse.Namespace, trainer: str) -> dict[str, Any]:
    """A row of the table: times in seconds, memory in MB, as far as `--only` asks for them."""
    settings = settings_of(args, trainer)
    row: dict[str, Any] = {
        "method": trainer,
        "classes": args.classes,
        "batch": settings.batch or settings.cfg().DATALOADER.TRAIN_X.BATCH_SIZE,
        "images": args.tested,
    }
    if args.only == ["runs"]:
        return row
    pair = Pair(settings, args.rate, args.against)
    trains = pair.plain.trains
    if "steps" in args.only and trains:
        row |= pair.steps(args.repeats)
    if "evaluation" in args.only:
        row |= pair.evaluation(args)
    del pair
    if "memory" in args.only and trains:
        row |= memory(settings, args.fast_alone)
    return row


def scaling(args: argparse.Namespace, trainer: str) -> list[dict[str, Any]]:
    """One method with fewer and more classes, images per step and images per evaluation."""
    rows = []
    for name, part, values in (
        ("classes", "steps", (10, 50, 200)),
        ("batch", "steps", (1, 8, 32)),
        ("tested", "evaluation", (100, 10_000)),
    ):
        for value in values:
            varied = {**vars(args), name: value, "only": [part], "repeats": 1}
            row = measure_method(argparse.Namespace(**varied), trainer)
            row["method"] = f"{name} {value:,}"
            rows.append(row)
            print(line(row, columns(args)), flush=True)
    return rows


def circumstances(args: argparse.Namespace, device: torch.device) -> dict[str, Any]:
    """What the numbers depend on beside the code: device, threads, precision, versions."""
    precision = {"fp16": torch.float16, "amp": torch.float16, "bf16": torch.bfloat16}
    dtype = precision.get(args.precision, torch.float32)
    return {
        "device": timing.device_name(device),
        "threads": torch.get_num_threads(),
        "backbone": args.backbone,
        "precision": args.precision,
        "matmul_gflops": timing.matmul_gflops(device, dtype),
        # Of products of so many multiplications: PyTorch's own time over oneDNN's.
        "onednn": timing.onednn_ratios() if device.type == "cpu" else {},
        "torch": torch.__version__,
        "python": platform.python_version(),
    }


COLUMNS = {  # of a row: its title, and the part of the benchmark it is measured in
    "step": ("step, s", "steps"),
    "step_cpu": ("… CPU s", "steps"),
    "step_with_views": ("… with views, s", "steps"),
    "floor": ("… at most, s", "steps"),
    "step_public": ("public step, s", "against"),
    "step_public_cpu": ("… CPU s", "against"),
    "evaluation": ("evaluation, s", "evaluation"),
    "evaluation_cpu": ("… CPU s", "evaluation"),
    "evaluation_text_kept": ("… text kept by both, s", "evaluation"),
    "evaluation_cached": ("… cached, s", "evaluation"),
    "evaluation_public": ("public evaluation, s", "against"),
    "memory": ("memory, MB", "memory"),
    "run": ("mini run, s", "runs"),
    "run_cpu": ("… CPU s", "runs"),
    "seeds": ("… 3 seeds together, s", "runs"),
}


def columns(args: argparse.Namespace) -> list[str]:
    """The keys of `COLUMNS` that `--only` asks for."""
    parts = [*args.only, *(["against"] if args.against else [])]
    return [name for name, (_, part) in COLUMNS.items() if part in parts]


def heading(shown: list[str]) -> str:
    """The titles of the table's columns, in one line."""
    titles = "".join(f"{COLUMNS[name][0]:>25}" for name in shown)
    return f"{'method':<16}{'C':>5}{'B':>4}{titles}{'image':>8}{'Δloss':>9}{'Δlogit':>9}"


def line(row: dict[str, Any], shown: list[str]) -> str:
    """A row of the table: for each quantity plain → fast, and the ratio."""
    cells = ""
    for name in shown:
        value = row.get(name)
        cells += f"{_cell(**value) if value else '–':>25}"
    image = f"{row['image_share']:.0%}" if "image_share" in row else "–"
    deltas = (row.get(name) for name in ("loss_difference", "logit_difference"))
    ends = "".join(f"{'–':>9}" if d is None else f"{d:9.1e}" for d in deltas)
    return f"{row['method']:<16}{row['classes']:>5}{row['batch']:>4}{cells}{image:>8}{ends}"


def ratios(rows: list[dict[str, Any]], shown: list[str]) -> str:
    """The ratios alone, as a Markdown table."""
    titles = [COLUMNS[name][0].partition(",")[0] for name in shown]
    lines = [["method", *titles, "image share"]]
    for row in rows:
        values = [(row.get(name) or {}).get("ratio") for name in shown]
        cells = ["" if v is None else f"{v:,.0f}" if v >= 100 else f"{v:.1f}" for v in values]
        cells.append(f"{row['image_share']:.0%}" if "image_share" in row else "")
        lines.append([row["method"], *cells])
    return markdown_table(lines)


def _cell(plain: float | None, fast: float, ratio: float | None) -> str:
    if plain is None or ratio is None:
        return _short(fast)
    return f"{_short(plain)}→{_short(fast)}{ratio:8.1f}×"


def _short(value: float) -> str:
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def main(argv: list[str] | None = None) -> dict[str, Any]:
    """Measure and print; returns what `--json` writes."""
    args = parse_args(argv)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    result: dict[str, Any] = {"circumstances": circumstances(args, device), "rows": []}
    args.rate = result["circumstances"]["matmul_gflops"]
    for name, value in result["circumstances"].items():
        if isinstance(value, dict):
            value = ", ".join(f"{size}: {ratio:.2f}×" for size, ratio in value.items())
        print(f"{name:<14} {value if not isinstance(value, float) else round(value, 1)}")
    if "runs" in args.only:
        result["start_up"] = process_timing.start_up(args.repeats)
        for name, value in result["start_up"].items():
            print(f"{name:<14} {value.wall:.2f} s, {value.cpu:.2f} CPU s")
    shown = columns(args)
    print(
        f"\nplain→fast and their ratio; evaluation of {args.tested:,} images; three seeds: apart→\n"
        "together; at most: the plain step, the fast one's arithmetic at the highest rate here;\n"
        "image: the share of the image tower in the fast step with its views"
    )
    print(heading(shown), flush=True)
    methods = args.methods or method_names()
    for trainer in methods:
        row = measure_method(args, trainer)
        if "runs" in args.only:
            run, seeds = process_timing.mini_run(trainer), process_timing.seeds_together(trainer)
            row |= {"run": against(*(path.wall for path in run))}
            row |= {"run_cpu": against(*(path.cpu for path in run))}
            row |= {"seeds": against(*(way.wall for way in seeds))}
        result["rows"].append(row)
        print(line(row, shown), flush=True)
    if args.markdown:
        print(f"\n{ratios(result['rows'], shown)}")
    if args.full:
        print(f"\n{methods[0]} with other numbers of classes, images per step and images tested")
        result["scaling"] = scaling(args, methods[0])
    if args.json:
        write_json(result, args.json)
    if args.plot:
        from benchmarks.plot import draw

        draw(result, args.plot)
    return result


if __name__ == "__main__":
    with user_errors():
        main()
