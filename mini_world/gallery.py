"""Draw pictures of the mini world's data sets: a row of test images for each, of several classes.

python scripts/draw_mini_world.py
python scripts/draw_mini_world.py --out shapes.png --datasets mini_shapes --columns 24
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import TYPE_CHECKING

from dassl.utils import UserError, atomic_write, suggest, user_errors
from dassl.utils.cli import Parser, output_file, positive

if TYPE_CHECKING:
    from PIL.Image import Image

GAP = 4  # pixels between pictures; the page shows through
FOUR = ("mini_shapes", "mini_fabrics", "mini_scenes", "mini_badges")  # those of the quick start


def gallery(names: Sequence[str], columns: int) -> Image:
    """The first test image of up to `columns` classes, spread evenly over each data set.

    names: of data sets. Raises UserError for one that isn't drawn.
    """
    import numpy as np
    from PIL import Image

    from .data_sets import DRAWN, SIDE

    for name in names:
        if name not in DRAWN:
            raise UserError(f"no drawn data set {name}{suggest(name, DRAWN)}")
    step = SIDE + GAP
    sheet = np.zeros((len(names) * step - GAP, columns * step - GAP, 4), np.uint8)
    for row, name in enumerate(names):
        drawn = DRAWN[name]
        places = np.linspace(0, len(drawn.names) - 1, min(columns, len(drawn.names)))
        for column, label in enumerate(places.round().astype(int)):
            paths, pictures = drawn.pictures(int(label))
            first = next(i for i, path in enumerate(paths) if "/test_" in path)
            here = sheet[row * step :, column * step :][:SIDE, :SIDE]
            here[..., :3], here[..., 3] = pictures[first], 255
    return Image.fromarray(sheet)


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--out", type=output_file, default="docs/images/mini_world.png", help="a PNG file")
    add("--datasets", nargs="+", default=FOUR, help=f"({' '.join(FOUR)})")
    add("--columns", type=positive, default=10, help="classes of each (10)")
    return parser.parse_args(argv)


@user_errors()
def main(argv: list[str] | None = None) -> None:
    """Draw and write the file."""
    args = parse_args(argv)
    with atomic_write(args.out, "wb") as file:
        gallery(args.datasets, args.columns).save(file, "PNG", optimize=True)
    print(args.out)
