"""What the Python entry points share: one-line errors and lists of seeds."""

from __future__ import annotations

import argparse
from typing import NoReturn

from dassl.utils import UserError


class Parser(argparse.ArgumentParser):
    """An ArgumentParser whose mistakes are `UserError`s: one line, no usage block."""

    def error(self, message: str) -> NoReturn:
        """Raise UserError."""
        raise UserError(f"{message}; {self.prog} --help lists the options")


def seed_list(text: str) -> list[int]:
    """Return the seeds of "2", "1-3" or "1,2,5"."""
    seeds = []
    for part in text.split(","):
        first, dash, last = part.partition("-")
        if not first.isdigit() or (dash and not last.isdigit()):
            raise argparse.ArgumentTypeError(f"{text!r} is no seed: write 2, 1-3 or 1,2,5")
        seeds += range(int(first), int(last or first) + 1)
    return seeds
