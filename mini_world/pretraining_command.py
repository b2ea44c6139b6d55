"""Pre-train the tiny CLIP on captions of the drawn world (see docs/mini_world.md).

    OMP_NUM_THREADS=1 python scripts/pretrain_tiny_clip.py --out mini_world/tiny_clip.pt
    python scripts/pretrain_tiny_clip.py --rescale 0.01 --out faint.pt

The second writes the shipped weights as the same function of words with fainter embeddings
(mini_world/rescaling.py), and trains nothing; a run takes them as MODEL.BACKBONE.NAME faint.pt.
"""

import argparse
from pathlib import Path

from dassl.utils import UserError, user_errors
from dassl.utils.cli import Parser

SHIPPED = Path(__file__).parent / "tiny_clip.pt"


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
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
    parser.add_argument(
        "--rescale",
        type=float,
        metavar="STD",
        help="of the shipped model's embeddings; no training",
    )
    args = parser.parse_args(argv)
    if args.rescale is not None and not 0 < args.rescale < 100:
        raise UserError("--rescale takes a standard deviation above 0, and below 100")
    return args


@user_errors()
def main() -> None:
    """Read the command line and train."""
    args = parse()
    if args.rescale is not None:
        from dassl.utils import write_tensors
        from dassl.utils.tensor_files import read_tensors

        from .rescaling import rescaled

        write_tensors(rescaled(read_tensors(SHIPPED), args.rescale), args.out)
        return
    from .pretraining import train

    train(args)
