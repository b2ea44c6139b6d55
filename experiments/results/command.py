#!/usr/bin/env python3
"""Tables of finished runs: base, new and H, mean ± std over seeds.

  python scripts/parse_results.py [output]                   text tables
  python scripts/parse_results.py output --format csv        or latex, markdown
  python scripts/parse_results.py output --plot new.png      a picture
  python scripts/parse_results.py output --html report.html  a page to look at
  python scripts/parse_results.py output --against CoOp      differences to CoOp
  python scripts/parse_results.py output --per-seed all.csv  every single value

Reads this code's result.json and the original Dassl-based code's log.txt.
Standard deviations are over seeds (n - 1). Missing runs are named on stderr; a
row whose runs differ in their configuration is refused, and the exit status is
then 2.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import textwrap
from contextlib import nullcontext

from dassl.utils import UserError, atomic_write, suggest, user_errors
from dassl.utils.cli import Parser, distinct_seeds, output_file, seed_list
from experiments.results.configs import CONFIGS
from experiments.results.rendering import FORMATS, Screen
from experiments.results.scores import load_scores
from experiments.results.summary import Summary, summarize
from experiments.results.sweeps import add_sweeps
from experiments.results.tables import Layout
from experiments.results.under_corruption import add_corruptions
from experiments.results.values import write_values


def parse_args() -> object:
    """Read the command line."""
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", nargs="?", default="output", help="where the runs lie (output)")
    parser.add_argument("--format", choices=FORMATS, default="text")
    parser.add_argument(
        "--out",
        type=output_file,
        metavar="FILE",
        help="write the tables there, not to the terminal",
    )
    parser.add_argument("--seeds", nargs="+", type=seed_list, default=[], help="1-3: those wanted")
    parser.add_argument("--datasets", nargs="+", default=[], help="those wanted (all that exist)")
    parser.add_argument("--trainers", nargs="+", default=[], help="those shown (all)")
    parser.add_argument(
        "--wide", action="store_true", help="on a terminal, too: lines as long as they come"
    )
    parser.add_argument(
        "--group-by",
        choices=("sees",),
        help="tables apart by what methods see beside labeled training images and class names",
    )
    parser.add_argument(
        "--against",
        default="",
        metavar="TRAINER",
        help="differences to this method are tested (each DePT_X is to X)",
    )
    parser.add_argument(
        "--ece", action="store_true", help="expected calibration errors beside the accuracies"
    )
    parser.add_argument(
        "--field", action="store_true", help="and a table of what was published of other methods"
    )
    _add_files(parser)
    args = parser.parse_args()
    if args.dark and not args.plot:
        raise UserError("--dark is for --plot FILE")
    return args


def _add_files(parser: Parser) -> None:
    """Add the options that name files to be written beside the tables."""
    parser.add_argument(
        "--per-seed",
        type=output_file,
        metavar="FILE",
        help="every single value, a line each, as .csv or .json",
    )
    parser.add_argument(
        "--plot",
        type=output_file,
        metavar="FILE",
        help="base against new, methods joined by arrows",
    )
    parser.add_argument("--dark", action="store_true", help="--plot for a dark page")
    parser.add_argument("--plots", metavar="FOLDER", help="every plot there is, as PNG and PDF")
    parser.add_argument(
        "--html", type=output_file, metavar="FILE", help="a report: one self-contained page"
    )


def read_summary(args: object) -> Summary:
    """Load, filter and summarize the runs; UserError if there is none."""
    scores, unreadable = load_scores(args.folder)
    known = {"trainers": {s.trainer for s in scores}, "datasets": {s.dataset for s in scores}}
    known["datasets"] |= {path.stem for path in (CONFIGS / "datasets").glob("*.yaml")}
    for what, there in known.items():
        for name in getattr(args, what) if scores else ():
            if name not in there:
                raise UserError(f"--{what}: there are no runs of {name}{suggest(name, there)}")
    if args.trainers:
        shown = {*args.trainers, args.against}
        scores = [score for score in scores if score.trainer in shown]
    if not scores:
        hint = f" ({len(unreadable)} unfinished)" if unreadable else ""
        raise UserError(f"no finished run of that kind in {args.folder}{hint}")
    summary = summarize(scores, distinct_seeds(args.seeds), args.datasets)
    add_sweeps(summary)
    add_corruptions(summary)
    summary.missing += unreadable
    return summary


def _screen(args: object) -> Screen:
    """The terminal that the tables go to, if they go to one."""
    if args.out or not sys.stdout.isatty():
        return Screen()
    columns = 0 if args.wide else shutil.get_terminal_size().columns
    return Screen(columns, bold=not os.environ.get("NO_COLOR"))


def _tell(kind: str, lines: list[str]) -> None:
    """Print lines on stderr, wrapped where that is a terminal."""
    columns = shutil.get_terminal_size().columns if sys.stderr.isatty() else 0
    for line in lines:
        text = f"{kind}: {line}"
        if columns:
            text = textwrap.fill(text, columns, subsequent_indent="  ", break_on_hyphens=False)
        print(text, file=sys.stderr)


@user_errors()
def main() -> int:
    """Print the tables; return the exit status."""
    args = parse_args()
    summary = read_summary(args)
    layout = Layout(
        by_sees=args.group_by == "sees", field=args.field, ece=args.ece, against=args.against
    )
    content = FORMATS[args.format](summary, layout, _screen(args))
    if args.out:
        with atomic_write(args.out) as file:
            file.write(content + "\n")
    else:
        print(content)
    if args.per_seed:
        write_values(summary, args.per_seed)
    if args.plot:
        from experiments.results.pictures import on_dark, save
        from experiments.results.plots import base_new_arrows
        from experiments.results.subjects import shots_of

        picture = base_new_arrows(summary)
        if picture is None:
            raise UserError("nothing to plot: no data set has both a base and a new accuracy")
        with on_dark() if args.dark else nullcontext():
            save(picture.figure(), args.plot)
        if others := [str(shots) for shots in shots_of(summary)[1:]]:
            named = f"{', '.join(others)} shots have pictures of their own with --plots FOLDER"
            print(f"note: {args.plot} is of {shots_of(summary)[0]} shots; {named}", file=sys.stderr)
    if args.plots:
        from experiments.results.plots import save_all

        print("plots:", *save_all(summary, args.plots), sep="\n  ", file=sys.stderr)
    if args.html:
        from experiments.results.report import write_report

        write_report(summary, args.html, layout, args.folder)
    _tell("missing", summary.missing)
    _tell("note", summary.notes)
    _tell("error", [f"refused {line}" for line in summary.refused])
    return 2 if summary.refused else 0
