"""What the Python entry points share on their command lines."""

from __future__ import annotations

import argparse


def seed_list(text: str) -> list[int]:
    """Return the seeds of "2", "1-3" or "1,2,5"."""
    seeds = []
    for part in text.split(","):
        first, dash, last = part.partition("-")
        if not first.isdigit() or (dash and not last.isdigit()):
            raise argparse.ArgumentTypeError(f"{text!r} is no seed: write 2, 1-3 or 1,2,5")
        seeds += range(int(first), int(last or first) + 1)
    return seeds
