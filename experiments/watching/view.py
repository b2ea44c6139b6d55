"""How far plans are, on a terminal: kinds of runs, what is under way, failures."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress

from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.live import Live
from rich.table import Table
from rich.text import Text

from dassl.utils import UserError
from experiments.watching.data import headline, kind_cells, step_cells
from experiments.watching.lines import fold, shorten
from experiments.watching.standing import (
    DONE,
    Kind,
    Standing,
    Step,
    steps_under_way,
)

NARROW = 64  # columns, below which some are left out
LEAST = 8  # lines of a plan's picture
LATEST = 3  # failures shown
MOST = 20  # looks and pictures take a twentieth of the time, not more


@contextmanager
def live_view(
    look: Callable[[], Sequence[Standing]], every: float, console: Console | None = None
) -> Iterator[None]:
    """Show, redrawn in place, what `look` returns; what is printed meanwhile stands above.

    Args:
        look: called again and again, by a thread of its own; what isn't readable just now, for
            which it raises UserError or OSError, is looked at again later.
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
        width, took = console.width, 0.0
        while not over.wait(max(every, MOST * took)):
            started = time.monotonic()
            picture.look(look)
            if console.width < width:  # the terminal has broken the lines: none is where it was
                console.clear()
            width = console.width
            live.refresh()
            took = time.monotonic() - started

    drawing = threading.Thread(target=redraw, daemon=True)
    try:
        with live:
            drawing.start()
            try:
                yield
            finally:
                over.set()
                drawing.join()
                picture.look(look)
    finally:
        console.show_cursor(True)  # also where a signal came at the end of it


class Picture:
    """Plans as they are drawn: never higher or wider than the terminal."""

    def __init__(self, standings: Sequence[Standing]) -> None:
        self.standings = standings

    def look(self, look: Callable[[], Sequence[Standing]]) -> None:
        """Take in how far they are now, if that can be read."""
        with suppress(UserError, OSError):
            self.standings = look()

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Draw them, those that go on or have failures whole as far as there is room."""
        # What a terminal shows of Ctrl-C, behind the last line, finds room too.
        width, room = console.width - len("^C"), console.height
        whole = [s for s in self.standings if s.goes_on or s.count(DONE) < len(s.runs)]
        whole = (whole or list(self.standings))[-max(1, room // LEAST) :]
        brief = [s for s in self.standings if s not in whole]
        for standing in brief[: max(0, room - LEAST * len(whole))]:
            yield _line(headline(standing), width, "dim")
            room -= 1
        for standing in whole:
            yield picture_of(standing, width, room // len(whole))


def picture_of(standing: Standing, width: int, height: int | None = None) -> Group:
    """Return a plan's picture: so many columns wide; at most so many lines high, or whole."""
    going, kinds, failed = steps_under_way(standing.runs), standing.kinds, standing.failed
    head = fold(headline(standing), width).splitlines()
    hidden = 0
    if height is not None:
        head = head if len(head) <= height // 6 else [headline(standing)]
        height -= len(head) - 1
        told = failed[-LATEST:] if height > 15 else failed[-1:] if height > 9 else []
        hidden, failed = len(failed) - len(told), told
        room = height - 4 - 2 * len(failed) - bool(hidden)  # the plan's line, two heads, a last one
        going = going[: max(1, room - min(len(kinds), room // 2))]
        kinds = _most_wanted(kinds, max(1, room - len(going)))
    parts: list[RenderableType] = [_line(line, width, "bold") for line in head]
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
        cells = kind_cells(standing, kind) if kind.runs else {}
        table.add_row(
            shorten(kind.name, room), *(cells.get(name, "") for name in columns), style=style
        )
    return table


def _under_way(steps: Sequence[Step], now: float, width: int) -> Table:
    columns = {"epoch": 7, "loss": 6, "elapsed": 10}
    if width < NARROW:
        del columns["loss"], columns["elapsed"]
    table, room = _table("under way", width, columns)
    for step in steps:
        cells = step_cells(step, now)
        name = shorten(step.chain, max(4, room - len(cells["what"]) - 2))
        table.add_row(f"{name}: {cells['what']}", *(cells[name] for name in columns))
    return table
