"""How far the runs of an output folder are, from what lies there: also from another machine.

    python scripts/status.py output             once
    python scripts/status.py output --watch     redrawn until all are complete or failed
    python scripts/status.py output --serve     a page that refreshes itself, for this machine only
    python scripts/status.py output --json

Exit status: 0 if no run failed, 1 if one did, 2 for a mistake in the command, or where there is
neither a plan, as scripts/run_protocol.py leaves it, nor a run. Nothing is written.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from dassl.utils import heed_signals, user_errors
from dassl.utils.cli import Parser, positive
from experiments.watching.data import data_of, headline, is_left, who_is_at_it
from experiments.watching.lines import is_live, say, width_of
from experiments.watching.reading import standings
from experiments.watching.standing import Standing

PORT = 8765


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("output", nargs="?", type=Path, default=Path("output"), help="where the runs lie (output)")
    ways = parser.add_mutually_exclusive_group()
    ways.add_argument("--watch", action="store_true", help="until all are complete or failed")
    page = f"a page on http://127.0.0.1:PORT ({PORT}), until Ctrl-C"
    ways.add_argument("--serve", nargs="?", type=port, const=PORT, metavar="PORT", help=page)
    ways.add_argument("--json", action="store_true", help="for programs, with every run")
    add("--every", type=positive, default=2, metavar="SECONDS", help="between two looks (2)")
    return parser.parse_args(argv)


def port(text: str) -> int:
    """Return the number of a port that anybody may listen on; 0 takes a free one."""
    if (
        not text.isascii()
        or not text.isdigit()
        or not (int(text) == 0 or 1024 <= int(text) < 65536)
    ):
        raise argparse.ArgumentTypeError(f"{text!r} is no port from 1024 to 65535")
    return int(text)


@user_errors()
def main(argv: list[str] | None = None) -> int:
    """Run the command; return its exit status."""
    args = parse_args(argv)
    found = standings(args.output)  # what can't be read is said before anything else
    if args.serve is not None:
        from experiments.watching.page import serve

        serve(args.output, args.serve, args.every)
    elif args.json:
        print(json.dumps({"plans": [data_of(standing) for standing in found]}, indent=2))
    elif args.watch:
        heed_signals()  # the terminal is to be left as it was
        found = watch(lambda: standings(args.output), args.every)
    else:
        show(found, args.output)
    return int(any(standing.failed for standing in found))


def show(found: Sequence[Standing], output: Path) -> None:
    """Print the pictures of plans, who is at them, and the command that goes on."""
    from rich.console import Console

    from experiments.watching.view import picture_of

    console = Console(highlight=False, width=width_of(sys.stdout), soft_wrap=True)
    for i, standing in enumerate(found):
        if i:
            print()
        console.print(picture_of(standing, console.width))
        if who := who_is_at_it(standing, output):
            say(who)
        if standing.command and is_left(standing):
            print(f"  {standing.command}")


def watch(look: Callable[[], list[Standing]], every: float) -> list[Standing]:
    """Show it again and again; a line whenever it has changed where there is no terminal."""
    found = look()
    if is_live(sys.stdout):
        from experiments.watching.view import live_view

        with live_view(look, every):
            while not all(standing.over for standing in found):
                time.sleep(every)
                found = look()
        return found
    told: dict[str, str] = {}
    while True:
        for i, standing in enumerate(found):
            key = f"{i} {standing.title}"
            if told.get(key) != standing.told:
                told[key] = standing.told
                say(f"{time.strftime('%H:%M:%S')} {headline(standing)}")
        if all(standing.over for standing in found):
            return found
        time.sleep(every)
        found = look()
