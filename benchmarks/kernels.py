#!/usr/bin/env python3
"""How many kernels a training step launches, with prefix and suffixes apart and in one row.

    python benchmarks/kernels.py                      every method
    python benchmarks/kernels.py --methods CoOp DePT_CoOp --classes 1000

Counted on a CPU, where a step dispatches what a GPU would launch: every operation that isn't a view
or an allocation. The towers are small, of twelve layers as ViT-B/16's; batch 4. The views of an
image tower that nothing trained enters are encoded before, and not counted.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.method_setup import MethodSetup, Settings, images, method_names
from dassl.utils import UserError, suggest, user_errors
from dassl.utils.cli import Parser, markdown_table, positive

BATCH = 4
APART, IN_A_ROW = False, True


class Kernels(TorchDispatchMode):
    """Counts in `number` what computes while it is entered."""

    FREE = ("empty", "promote_types", "detach")

    def __init__(self) -> None:
        super().__init__()
        self.number = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        """Count an operation, and do it."""
        name = func.overloadpacket.__name__
        self.number += not (func.is_view or any(free in name for free in self.FREE))
        return func(*args, **(kwargs or {}))


def counted(names: Iterable[str], classes: int) -> Iterator[tuple[str, int, int]]:
    """Yield methods, and the kernels of a step apart and in one row.

    Methods whose step is their own, and those that train nothing, are left out.
    """
    model = Settings("CoOp", "tiny").model()
    for name in names:
        setup = MethodSetup(Settings(name, "tiny", classes, BATCH), model, fast=True)
        if setup.trains and not setup.method.has_own_step():
            yield name, step_kernels(setup, APART), step_kernels(setup, IN_A_ROW)


def step_kernels(setup: MethodSetup, in_one_row: bool) -> int:
    """The kernels of a step; the one before it has made what is kept."""
    setup.method.encoders.text.in_one_row = in_one_row
    image, label = images(BATCH, setup.model), torch.arange(BATCH, device=setup.device)
    given, beside = setup.ahead(image)
    setup.step(given, label, beside)
    with Kernels() as kernels:
        setup.step(given, label, beside)
    return kernels.number


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """The options. Raises UserError for a method that isn't there."""
    parser = Parser(
        prog="kernels.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--methods", nargs="+", metavar="NAME", help="methods to count (all)")
    parser.add_argument("--classes", type=positive, default=100, help="classes (100)")
    args = parser.parse_args(argv)
    known = method_names()
    for name in args.methods or ():
        if name not in known:
            raise UserError(f"no method {name} to count{suggest(name, known)}")
    args.methods = args.methods or known
    return args


@user_errors()
def main(argv: list[str] | None = None) -> None:
    """Print the table."""
    args = parse_args(argv)
    rows = [
        (name, f"{apart:,}", f"{row:,}") for name, apart, row in counted(args.methods, args.classes)
    ]
    print(markdown_table([("method", "apart", "in one row"), *rows]))


if __name__ == "__main__":
    main()
