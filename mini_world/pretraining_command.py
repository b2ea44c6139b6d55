"""Pre-train the tiny CLIP on captions of the drawn world (see docs/mini_world.md).

OMP_NUM_THREADS=1 python scripts/pretrain_tiny_clip.py --out mini_world/tiny_clip.pt
"""

import argparse
from pathlib import Path

from dassl.utils import user_errors


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="the weights file to write")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--steps", type=int, default=8000)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--pool", type=int, default=32768, help="images drawn beforehand")
    parser.add_argument("--lr", type=float, default=7e-4)
    parser.add_argument("--warmup", type=int, default=100)
    parser.add_argument("--precision", choices=["fp32", "bf16"], default="bf16")
    parser.add_argument("--save-every", type=int, default=200, help="steps between checkpoints")
    parser.add_argument("--eval-size", type=int, default=2048)
    parser.add_argument("--stop-at", type=int, default=None, help="stop early, to resume later")
    return parser.parse_args(argv)


@user_errors()
def main() -> None:
    """Read the command line and train."""
    args = parse()
    from .pretraining import train

    train(args)
