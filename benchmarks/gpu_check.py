#!/usr/bin/env python3
"""What only a GPU can tell, in one command; neither internet, data sets nor released weights.

    scripts/gpu_check.sh --output output/gpu
    scripts/gpu_check.sh --only methods profile --methods DePT_CoOp
    scripts/gpu_check.sh --cpu --output output/try      tries the command itself, on tiny towers

- tests: those that need a GPU, or are about what runs on one.
- methods: a step of every method that trains, in fp16 and bf16, eagerly and as a CUDA graph: its
  times, its peak memory, and whether the graph replays the eager step's numbers.
- suite: a model on each of the paper's eleven data sets, trained on the base classes and tested on
  both halves, on JPEGs drawn here in the sets' numbers; by the clock.
- profile: the ten kernels that take most of a step.

The result is gpu_check.json and, to read, gpu_check.md. A method that fails is named with its
error, and the others go on.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from dassl.utils import UserError, atomic_write, user_errors, write_json
from dassl.utils.cli import Parser, markdown_table

REPO = Path(__file__).resolve().parents[1]
PARTS = ("tests", "methods", "suite", "profile")
TESTS = ("test_cuda_graphs.py", "test_precision.py", "test_no_waiting.py", "test_ahead.py")


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = Parser(
        prog="gpu_check.sh",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--output", type=Path, default=Path("output/gpu_check"), metavar="DIR")
    add("--only", nargs="+", choices=PARTS, default=list(PARTS), help="what to do (all)")
    add("--methods", nargs="+", metavar="NAME", help="registered trainers (all that train)")
    add("--datasets", nargs="+", metavar="NAME", help="of the suite (the eleven)")
    add("--repeats", type=int, default=20, help="timed steps (20)")
    add("--cpu", action="store_true", help="without a GPU and on tiny towers: tries the command")
    return parser.parse_args(argv)


def tests(args: argparse.Namespace) -> dict[str, Any]:
    """Run the tests; with --cpu only the first file, on tiny towers all the same."""
    files = [f"tests/tuning/{name}" for name in TESTS[: 1 if args.cpu else None]]
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *files]
    done = subprocess.run(command, cwd=REPO, capture_output=True, text=True)
    lines = [line for line in done.stdout.splitlines() if line.strip()]
    return {
        "passed": done.returncode == 0,
        "summary": lines[-1] if lines else "no output",
        "failed": [line for line in lines if line.startswith(("FAILED", "ERROR"))],
    }


def page(result: dict[str, Any]) -> str:
    """The result as a page to read."""
    where = result["circumstances"]
    parts = [f"# GPU check: {where['device']}\n\n{where['precision_note']} {where['versions']}\n"]
    if "tests" in result:
        found = result["tests"]
        parts.append("## Tests\n\n" + "\n".join([found["summary"], *found["failed"]]) + "\n")
    if "methods" in result:
        parts.append("## A step of every method\n\n" + markdown_table(_method_rows(result)) + "\n")
    if "suite" in result:
        parts.append("## The suite, by the clock\n\n" + markdown_table(_suite_rows(result)) + "\n")
    if "profile" in result:
        found = result["profile"]
        rows = [(k["name"][:80], str(k["calls"]), f"{k['ms']:.3f}") for k in found["kernels"]]
        table = markdown_table([("kernel", "calls", "ms"), *rows])
        parts.append(f"## Ten steps of {found['method']}\n\n{table}\n")
    return "\n".join(parts)


def _method_rows(result: dict[str, Any]) -> list[tuple[str, ...]]:
    titles = ("method", "precision", "eager, ms", "graph, ms", "CPU ms", "peak MB", "remark")
    rows = [titles]
    for row in result["methods"]:
        times = (_ms(row.get("eager")), _ms(row.get("graph")), _ms(row.get("eager"), 1))
        memory = f"{row['peak_mb']:,.0f}" if row.get("peak_mb") is not None else ""
        rows.append((row["method"], row["precision"], *times, memory, row.get("remark", "")))
    return rows


def _ms(time: list[float] | None, which: int = 0) -> str:
    return f"{1000 * time[which]:.2f}" if time else ""


def _suite_rows(result: dict[str, Any]) -> list[tuple[str, ...]]:
    rows = [("data set", "classes", "training images", "test images", "train s", "new s", "remark")]
    for row in result["suite"]["data_sets"]:
        sizes = (f"{row[key]:,}" for key in ("classes", "training", "tested"))
        seconds = (f"{row[key]:.1f}" if row.get(key) else "" for key in ("base_s", "new_s"))
        rows.append((row["data_set"], *sizes, *seconds, row.get("remark", "")))
    total = sum(row.get("base_s", 0) + row.get("new_s", 0) for row in result["suite"]["data_sets"])
    return [*rows, (f"{result['suite']['method']}, together", "", "", "", f"{total:.0f}", "", "")]


def main(argv: list[str] | None = None) -> dict[str, Any]:
    """Run the command; returns what stands in gpu_check.json."""
    args = parse_args(argv)
    import torch

    if not torch.cuda.is_available() and not args.cpu:
        raise UserError("gpu_check needs a GPU that PyTorch can use; --cpu tries it on tiny towers")
    if args.cpu and torch.cuda.is_available():
        raise UserError("--cpu is for a machine without a GPU; CUDA_VISIBLE_DEVICES= hides yours")
    from benchmarks import gpu_steps, gpu_suite, timing
    from dassl.utils import library_versions

    device = torch.device("cpu" if args.cpu else "cuda")
    result: dict[str, Any] = {
        "circumstances": {
            "device": timing.device_name(device),
            "precision_note": "Tiny towers." if args.cpu else "ViT-B/16, 100 classes.",
            "versions": ", ".join(f"{k} {v}" for k, v in library_versions().items()),
            "cuda": torch.version.cuda,
        }
    }
    parts = {
        "tests": lambda: tests(args),
        "methods": lambda: gpu_steps.every_method(args, device),
        "suite": lambda: gpu_suite.suite(args),
        "profile": lambda: gpu_steps.profile(args, device),
    }
    args.output.mkdir(parents=True, exist_ok=True)
    for name in [name for name in PARTS if name in args.only]:
        print(f"{name} …", flush=True)
        result[name] = parts[name]()
        # After each part: one that takes the machine down leaves those before it.
        write_json(result, args.output / "gpu_check.json")
        with atomic_write(args.output / "gpu_check.md") as file:
            file.write(page(result))
    print(page(result))
    return result


if __name__ == "__main__":
    with user_errors():
        main()
