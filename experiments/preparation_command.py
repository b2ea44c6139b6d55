"""Get the data sets, lay them out as the readers want them, and check what is there.

    python scripts/prepare_data.py oxford_pets dtd --root DATA    download, unpack, check
    python scripts/prepare_data.py all --root DATA
    python scripts/prepare_data.py --check --root DATA            what is there, in a table
    python scripts/prepare_data.py --check EuroSAT --decode --root DATA
    python scripts/prepare_data.py --check ImageFolder --decode --root MY_IMAGES
    python scripts/prepare_data.py --check flowers=MY_FLOWERS leaves=MY_LEAVES --decode
    python scripts/prepare_data.py --convert-fewshot EuroSAT --root DATA
    python scripts/prepare_data.py --export-fewshot EuroSAT --shots 16 --seeds 1-3 --root DATA

The same command again goes on where it stopped. Names are those of configs/datasets/, where a file
may say DATASET.ROOT, or of the readers, or NAME=FOLDER for images of your own. --convert-fewshot
turns the original code's split_fewshot/shot_*-seed_*.pkl into JSON without running them, and public
samples of lines, shot_*-seed_*_train.jsonl and …_val.jsonl, too; --export-fewshot writes samples as
such lines. Exit status: 0 if every data set asked for is complete, 1 if not, 2 for a mistake in the
command.
"""

from __future__ import annotations

import argparse
import os
import sys

from dassl.utils import GOES_ON, UserError, user_errors
from dassl.utils.cli import Parser, distinct_seeds, seed_list


def _seconds(text: str) -> float:
    """A time to wait. Raises ValueError, of which argparse says which option was wrong."""
    if not 0 < float(text) < 1e6:
        raise ValueError
    return float(text)


def _times(text: str) -> int:
    """A number of repetitions. Raises ValueError as `_seconds`."""
    if not 0 <= int(text) < 1000:
        raise ValueError
    return int(text)


def _shots(text: str) -> int:
    """A number of images of a class. Raises ValueError as `_seconds`."""
    if not 0 < int(text) < 10**6:
        raise ValueError
    return int(text)


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("names", nargs="*", metavar="NAME", help="data sets; 'all' is the paper's fifteen")
    add("--root", default="", help="the folder that holds the data sets' folders")
    add("--check", action="store_true", help="download nothing; without names: all fifteen")
    add("--decode", action="store_true", help="read every image when checking")
    add("--convert-fewshot", action="store_true", help="few-shot pickles to JSON")
    add("--export-fewshot", action="store_true", help="few-shot samples as .jsonl, drawn or kept")
    add("--shots", nargs="+", type=_shots, default=[1, 2, 4, 8, 16], help="to export (1 2 4 8 16)")
    add("--seeds", nargs="+", type=seed_list, default=[[1, 2, 3]], help="to export (1-3)")
    add("--downloads", metavar="DIR", help="where archives go (ROOT/downloads)")
    add("--keep", action="store_true", help="keep downloads that are in their place")
    add("--timeout", type=_seconds, default=30.0, help="seconds a server may stay silent (30)")
    add("--retries", type=_times, default=3, help="how often a server is asked again (3)")
    return parser.parse_args(argv)


@user_errors(f"interrupted; {GOES_ON}")
def main(argv: list[str] | None = None) -> int:
    """Run the command; return its exit status."""
    args = parse_args(argv)
    # Here, as the readers import PyTorch, which --help has no need of.
    from datasets.preparation.steps import SOURCES, convert, export, prepare, report, targets_of
    from tuning.class_names import remarks_on

    if not args.names and not args.check:
        raise UserError(f"say --root DIR, and name a data set, or 'all': {', '.join(SOURCES)}")
    targets = targets_of(args.names or ["all"], args.root)
    if args.convert_fewshot or args.export_fewshot:
        for target in targets:
            written = convert(target.reader, target.root) if args.convert_fewshot else []
            if args.export_fewshot:
                seeds = distinct_seeds(args.seeds)
                written += export(target.reader, target.root, args.shots, seeds)
            for path in written:
                print(f"wrote {os.path.relpath(path)}")
        return 0
    for target in targets if args.check else ():
        if not os.path.exists(os.path.expanduser(target.root)):
            raise UserError(f"no such data folder: {target.root} (--root)")
    failures = [] if args.check else prepare([target.reader for target in targets], args)
    complete = report(targets, args, remarks_on)
    for failure in failures:
        print(failure, file=sys.stderr)
    return 0 if complete else 1
