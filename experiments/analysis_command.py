"""Look into trained models.

    python scripts/analyze.py channel-importance RUN RUN … --window 64
    python scripts/analyze.py nearest-words RUN
    python scripts/analyze.py confusion RUN --classes new
    python scripts/analyze.py embedding RUN

RUN is the folder of a run (its --output-dir), or a checkpoint in it. Pictures (PNG and PDF) and
their numbers (CSV) go to --out.
"""

from __future__ import annotations

import argparse

from dassl.utils import user_errors
from dassl.utils.cli import Parser, positive


def parse_args() -> argparse.Namespace:
    """Read the command line."""
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)

    def add(name: str, function: str, runs: str, text: str) -> argparse.ArgumentParser:
        command = commands.add_parser(name, help=text, description=text)
        command.set_defaults(function=function)
        command.add_argument("runs", nargs=runs, metavar="RUN")
        command.add_argument("--root", default="", help="where the data sets lie, if not as then")
        command.add_argument("--backbone", default="", help="CLIP's name or file, if not the run's")
        command.add_argument("--out", default="analysis", help="folder of the outputs (analysis)")
        return command

    parts = {"choices": ("base", "new", "all"), "default": "", "help": "if not those of the run"}
    channels = add(
        "channel-importance", "importance", "+", "CI of base and new classes per channel"
    )
    channels.add_argument("--window", type=positive, default=1, help="channels at once (1)")
    words = add("nearest-words", "nearest_words", 1, "the words closest to each context token")
    words.add_argument("--top", type=positive, default=5)
    confused = add("confusion", "confusion", 1, "which classes are taken for which")
    confused.add_argument("--classes", **parts)
    confused.add_argument("--top", type=positive, default=10, help="pairs printed (10)")
    map_ = add("embedding", "embedding", 1, "t-SNE of image and text features")
    map_.add_argument("--classes", **parts)
    map_.add_argument("--max-images", type=positive, default=2000)
    return parser.parse_args()


@user_errors()
def main() -> None:
    """Carry out the command."""
    args = parse_args()
    from experiments import analysis  # here, as it imports what --help has no need of

    getattr(analysis, args.function)(args)
