"""How far plans are, on a terminal: kinds of runs, what is under way, failures."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.live import Live
from rich.table import Table
from rich.text import Text

from experiments.watching.lines import duration, fold, shorten, told_to_go
from experiments.watching.standing import (
    DONE,
    FAILED,
    Kind,
    Standing,
    Step,
    steps_under_way,
)

NARROW = 64  # columns, below which some are left out
LATEST = 3  # failures shown


@contextmanager
def live_view(
    look: Callable[[], Standing], every: float, console: Console | None = None
) -> Iterator[None]:
    """Show, redrawn in place, what `look` returns; what is printed meanwhile stands above.

    Args:
        look: called again and again, by a thread of its own.
        every: seconds between two looks.
        console: the terminal.
    """
    console = console or Console(highlight=False)
    picture = Picture(look())
    live = Live(
        picture,
        console=console,
        auto_refresh=False,
        redirect_stderr=sys.stderr.isatty(),
        vertical_overflow="crop",
    )
    over = threading.Event()

    def redraw() -> None:
        width = console.width
        while not over.wait(every):
            picture.standing = look()
            if console.width < width:  # the terminal has broken the lines: none is where it was
                console.clear()
            width = console.width
            live.refresh()

    drawing = threading.Thread(target=redraw, daemon=True)
    try:
        with live:
            drawing.start()
            try:
                yield
            finally:
                over.set()
                drawing.join()
                picture.standing = look()
    finally:
        console.show_cursor(True)  # also where a signal came at the end of it


class Picture:
    """A plan as it is drawn: never higher or wider than the terminal."""

    def __init__(self, standing: Standing) -> None:
        self.standing = standing

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Draw it."""
        # What a terminal shows of Ctrl-C, behind the last line, finds room too.
        yield picture_of(self.standing, console.width - len("^C"), console.height)


def picture_of(standing: Standing, width: int, height: int | None = None) -> Group:
    """Return a plan's picture: so many columns wide; at most so many lines high, or whole."""
    going, kinds, failed = steps_under_way(standing.runs), standing.kinds, standing.failed
    hidden = 0
    if height is not None:
        told = failed[-LATEST:] if height > 15 else failed[-1:] if height > 9 else []
        hidden, failed = len(failed) - len(told), told
        room = height - 4 - 2 * len(failed) - bool(hidden)  # the plan's line, two heads, a last one
        going = going[: max(1, room - min(len(kinds), room // 2))]
        kinds = _most_wanted(kinds, max(1, room - len(going)))
    parts: list[RenderableType] = [_line(headline(standing), width, "bold")]
    parts.append(_kinds(standing, kinds, width))
    if going:
        parts.append(_under_way(going, standing.now, width))
    for run in failed:
        parts.append(_line(f"failed: {run.name}", width, "red"))
        reason = f"  {run.reason or 'it does not say why'}"
        parts.append(_line(reason, width) if height else Text(fold(reason, width), no_wrap=True))
    if hidden:
        parts.append(_line(f"and {hidden} more that failed", width, "red"))
    return Group(*parts)


def headline(standing: Standing) -> str:
    """Return "base_to_new: 12 of 24 runs complete, 3 under way; about 2 min to go"."""
    return f"{standing.title}: {standing.told}{told_to_go(*standing.to_go())}"


def _line(text: str, width: int, style: str = "") -> Text:
    return Text(shorten(text, width), style=style, no_wrap=True)


def _most_wanted(kinds: Sequence[Kind], room: int) -> list[Kind]:
    """As many as there is room for, those first that are not complete; in their order."""
    if len(kinds) <= room:
        return list(kinds)
    first = sorted(kinds, key=lambda kind: kind.count(DONE) == len(kind.runs))[: room - 1]
    kept = [kind for kind in kinds if kind in first]
    return [*kept, Kind(f"… {len(kinds) - len(kept)} more kinds")]


def _table(first: str, width: int, columns: dict[str, int]) -> tuple[Table, int]:
    """A table whose first column takes what the others leave, and how much that is."""
    room = max(8, width - sum(columns.values()) - 2 * len(columns))
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="dim")
    table.add_column(first, no_wrap=True, width=room)
    for name, cells in columns.items():
        table.add_column(name, justify="right", no_wrap=True, width=cells)
    return table, room


def _kinds(standing: Standing, kinds: Sequence[Kind], width: int) -> Table:
    columns = {"done": 7, "failed": 6, "acc. %": 6, "one takes": 9, "to go": 10}
    if width < NARROW:
        del columns["failed"], columns["one takes"]
    table, room = _table("kind", width, columns)
    for kind in kinds:
        style = "dim" if not kind.runs or kind.count(DONE) == len(kind.runs) else ""
        cells = cells_of(standing, kind) if kind.runs else {}
        table.add_row(
            shorten(kind.name, room), *(cells.get(name, "") for name in columns), style=style
        )
    return table


def cells_of(standing: Standing, kind: Kind) -> dict[str, str]:
    """How many are complete and failed, the mean accuracy, the time of one and of what is left."""
    left, more = standing.to_go(kind)
    return {
        "done": f"{kind.count(DONE)}/{len(kind.runs)}",
        "failed": str(kind.count(FAILED) or ""),
        "acc. %": "" if kind.accuracy is None else f"{kind.accuracy:.2f}",
        "one takes": "" if kind.each is None else duration(kind.each),
        "to go": "" if more or not left else duration(left),
    }


def _under_way(steps: Sequence[Step], now: float, width: int) -> Table:
    columns = {"epoch": 7, "loss": 6, "since": 10}
    if width < NARROW:
        del columns["loss"], columns["since"]
    table, room = _table("under way", width, columns)
    for step in steps:
        cells = step_cells(step, now)
        name = shorten(step.chain, max(4, room - len(cells["what"]) - 2))
        table.add_row(f"{name}: {cells['what']}", *(cells[name] for name in columns))
    return table


def step_cells(step: Step, now: float) -> dict[str, str]:
    """Whether it trains or tests, how many models, how far it is, and for how long."""
    run, number = step.slowest, f" {len(step.runs)}" if len(step.runs) > 1 else ""
    return {
        "what": ("test" if step.tests else "train") + number,
        "epoch": f"{run.epoch}/{run.epochs}" if run.epoch and run.epochs else "",
        "loss": "" if step.loss is None else f"{step.loss:.3g}",
        "since": "" if run.since is None else duration(now - run.since),
    }
