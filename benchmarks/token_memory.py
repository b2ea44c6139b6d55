#!/usr/bin/env python3
"""What a token of a prompt takes in memory in a training step, in widths of the tower per layer.

    python benchmarks/token_memory.py                   ViT-B/16's text tower
    python benchmarks/token_memory.py --backbone tiny --classes 20 60

The text encoder cuts the classes into chunks that the memory holds (clip/prompting/shared.py). What
it counts on for a token is measured here: of a forward and backward pass with few and with many
classes, each in a process of its own, what the many take more over the tokens that they have more.
Resident is the process's peak, which the chunks have to fit; allocated the peak of what PyTorch
asked for, the same on every machine. On a CPU.
"""

from __future__ import annotations

import argparse
import multiprocessing
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks.method_setup import SIZES, Settings, classes_of
from clip.prompting import Encoders, LowRank, TextEncoder, shared
from dassl.utils import UserError, forget_peak_memory, peak_memory_mb, user_errors
from dassl.utils.cli import Parser

_CONTEXT, _RANK = 4, 4


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line. Raises UserError for class numbers out of order."""
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--backbone", choices=SIZES, default="ViT-B/16", help="(ViT-B/16)")
    add("--classes", type=int, nargs=2, default=(100, 400), help="few and many (100 400)")
    args = parser.parse_args(argv)
    if not 0 < args.classes[0] < args.classes[1]:
        raise UserError("--classes takes two numbers, the second one larger")
    return args


def allocated_by(call: Callable[[], object]) -> int:
    """The most bytes that a call holds at a time beyond what was there."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        call()
    events = [e for e in profiled.profiler.kineto_results.events() if e.name() == "[memory]"]
    now = most = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        now += event.nbytes()
        most = max(most, now)
    return most


def measure(backbone: str, classes: int, changed: bool, profiled: bool) -> tuple[int, int]:
    """The suffixes' tokens, and the bytes of a forward and backward pass: allocated or resident.

    changed: with low-rank changes of all of a block's products, as a method may put into them.
    """
    encoder = Encoders(Settings("CoOp", backbone).model().requires_grad_(False), fast=True).text
    encoder.memory_budget = 1 << 62  # no chunks
    context = torch.nn.Parameter(torch.zeros(_CONTEXT, encoder.width))
    layout = encoder.layout(classes_of(classes).names, _CONTEXT)
    changes = list(_low_rank(encoder)) if changed else []

    def step() -> None:
        encoder(layout, context, changes=changes).square().sum().backward()

    if profiled:
        return sum(layout.lengths), allocated_by(step)
    forget_peak_memory()  # of what was there to build the tower
    step()
    return sum(layout.lengths), int(peak_memory_mb() * 2**20)


def _low_rank(encoder: TextEncoder) -> Iterator[LowRank]:
    for layer in range(encoder.layers):
        for part in LowRank.PARTS:
            out, given = (4 if part == "fc" else 1), (4 if part == "proj" else 1)
            a = torch.nn.Parameter(torch.zeros(_RANK, given * encoder.width))
            b = torch.nn.Parameter(torch.zeros(out * encoder.width, _RANK))
            yield LowRank(layer, part, a, b)


def widths_per_token(backbone: str, classes: Sequence[int], changed: bool, profiled: bool) -> float:
    """What a token more takes, in fp32 numbers as many as the tower is wide, per layer."""
    found = []
    for number in classes:
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(1, mp_context=context) as pool:
            found.append(pool.submit(measure, backbone, number, changed, profiled).result())
    (few, less), (many, more) = found
    width, layers = SIZES[backbone]["transformer_width"], 12
    return (more - less) / (many - few) / (width * layers * 4)


def main(argv: Sequence[str] | None = None) -> dict[str, dict[str, float]]:
    """Measure and print; returns widths per token, by the constants' names."""
    args = parse_args(argv)
    found: dict[str, dict[str, float]] = {}
    for name, changed in (("_WIDTHS_PER_TOKEN", False), ("_WIDTHS_PER_CHANGED_TOKEN", True)):
        found[name] = {
            kind: widths_per_token(args.backbone, args.classes, changed, kind == "allocated")
            for kind in ("allocated", "resident")
        }
        told = ", ".join(f"{kind} {value:.1f}" for kind, value in found[name].items())
        print(f"{name} is {getattr(shared, name)}: {told}", flush=True)
    return found


if __name__ == "__main__":
    with user_errors():
        main()
