"""Tables and records as text, Markdown, LaTeX, CSV and JSON."""

from __future__ import annotations

import io
import textwrap
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

from tabulate import SEPARATING_LINE, DataRow, TableFormat, tabulate

from dassl.utils import json_text
from dassl.utils.cli import escape_markdown, markdown_table, write_csv_rows
from experiments.results.all_tables import make_tables
from experiments.results.compare import Comparison, comparisons
from experiments.results.grids import BEST, GridRow, grid, indented
from experiments.results.latex import as_latex
from experiments.results.summary import Summary
from experiments.results.tables import USUAL, Layout, Table
from experiments.results.values import values
from experiments.results.what_ran import FACTS

_PLAIN = TableFormat(None, None, None, None, *[DataRow("", "  ", "")] * 2, 0, None)


@dataclass(frozen=True)
class Screen:
    """What text is written for: a terminal of so many columns that knows bold print, or a file."""

    columns: int = 0  # 0: lines as long as they come
    bold: bool = False  # else a star marks the best


FILE = Screen()


def as_text(tables: list[Table], screen: Screen = FILE) -> str:
    """Return aligned columns; tables that are wider than the screen in blocks of columns."""
    return "\n\n".join(_text_of(table, screen) for table in tables)


def _text_of(table: Table, screen: Screen) -> str:
    keys = len(table.heads)
    rows = grid(table)
    body = [_with_marks(table, row, screen) for row in rows]
    names = _shorten_keys(body, keys, screen.columns * 3 // 5)
    widths = [max(map(_width, column)) for column in zip(*body, strict=True)]
    blocks = []
    for chosen in _blocks(widths, keys, screen.columns):
        lines = _aligned(table, rows, [[row[i] for i in chosen] for row in body])
        title = table.title if not blocks else f"{table.title}, continued"
        rule = "-" * max(_width(line) for line in lines)
        blocks.append("\n".join([title, rule, lines[0], rule, *lines[1:]]))
    marked = f"{'bold' if screen.bold else '*'}: {BEST}"
    notes = [*([marked] if table.ranked else []), *table.footnotes, *names]
    return "\n".join(["\n\n".join(blocks), *(_wrapped(note, screen.columns) for note in notes)])


def _with_marks(table: Table, row: GridRow, screen: Screen) -> list[str]:
    """Return a row's cells; where a column has a star, the other cells have a blank there."""
    cells = indented(table, row)
    starred = {len(table.heads) + i for i, c in enumerate(table.columns) if table.has_best(c)}
    for i in starred:
        if screen.bold:
            cells[i] = f"{_BOLD}{cells[i]}{_USUAL}" if i in row.best else cells[i]
        else:
            cells[i] += "*" if i in row.best else " "
    return cells


_BOLD, _USUAL = "\x1b[1m", "\x1b[22m"


def _width(text: str) -> int:
    return len(text.replace(_BOLD, "").replace(_USUAL, ""))


def _shorten_keys(body: list[list[str]], keys: int, most: int) -> list[str]:
    """Shorten words in the middle so that the key columns take `most` letters; 0: as they are.

    Those that would look alike get a number each; returned is what the numbers mean, a line each.
    """
    notes: list[str] = []
    while most:
        widths = [max(len(row[i]) for row in body) for i in range(keys)]
        over = sum(widths) + 2 * (keys - 1) - most
        longest = max(range(keys), key=widths.__getitem__)
        if over <= 0 or widths[longest] <= _LEAST:
            break
        room = max(_LEAST, widths[longest] - over)
        names = list(dict.fromkeys(row[longest] for row in body))
        short = {name: _shortened(name, room) for name in names}
        if len({*short.values()}) < len(names):
            long = [name for name in names if len(name) > room]
            marks = {name: f" #{len(notes) + i}" for i, name in enumerate(long, start=1)}
            short |= {n: _shortened(n, room - len(mark)) + mark for n, mark in marks.items()}
            notes += [f"{mark.strip()} {name.strip()}" for name, mark in marks.items()]
        for row in body:
            row[longest] = short[row[longest]]
    return notes


_LEAST = 12  # letters of a name


def _shortened(name: str, most: int) -> str:
    if len(name) <= most:
        return name
    tail = (most - 1) // 2
    return f"{name[: most - 1 - tail]}…{name[-tail:]}"


def _blocks(widths: list[int], keys: int, columns: int) -> list[list[int]]:
    """Return which columns stand side by side: the keys, and as many others as there is room."""
    first = list(range(keys))
    start = sum(widths[:keys]) + 2 * (keys - 1)
    blocks, room = [list(first)], columns - start
    for i in range(keys, len(widths)):
        room -= widths[i] + 2
        if columns and room < 0 and len(blocks[-1]) > keys:
            blocks.append(list(first))
            room = columns - start - widths[i] - 2
        blocks[-1].append(i)
    return blocks


def _aligned(table: Table, rows: list[GridRow], body: list[list[str]]) -> list[str]:
    """Return lines: the head, then the others; groups apart, their name but once."""
    shown: list[list[str] | str] = []
    previous = ""
    for row, cells in zip(rows, body, strict=True):
        ours = row.kind == "ours"
        if ours and table.grouped and row.cells[0] != previous and len(shown) > 1:
            shown.append(SEPARATING_LINE)
        if ours and row.cells[0] == previous and len(table.heads) > 1:
            cells[0] = ""
        previous = row.cells[0] if ours else previous
        shown.append(cells)
    keys = len(table.heads)
    text = tabulate(
        shown,
        tablefmt=_PLAIN,
        colalign=["left"] * keys + ["right"] * (len(body[0]) - keys),
        disable_numparse=True,
        preserve_whitespace=True,
    )
    return [line.rstrip() for line in text.split("\n")]


def _wrapped(text: str, columns: int) -> str:
    return textwrap.fill(text, columns, subsequent_indent="  ") if columns else text


def as_markdown(tables: list[Table]) -> str:
    """Return GitHub's Markdown tables."""
    blocks = []
    for table in tables:
        rows = [
            [
                f"**{escape_markdown(text)}**" if i in row.best else escape_markdown(text)
                for i, text in enumerate(indented(table, row))
            ]
            for row in grid(table)
        ]
        title = escape_markdown(table.title)
        parts = [f"**{title}**", markdown_table(rows, len(table.heads))]
        parts += [f"**Bold**: {BEST}"] if table.ranked else []
        blocks.append("\n\n".join([*parts, *map(escape_markdown, table.footnotes)]))
    return "\n\n".join(blocks)


METRICS = ("base", "new", "h", "accuracy", "ece_base", "ece_new", "ece")


def as_csv(summary: Summary) -> str:
    """Return one line per record: full precision, empty where a protocol has no such number."""
    head = ["protocol", "trainer", "config", "shots", "source", "dataset"]
    head += ["classes", "corruption", "severity", "seeds", "sees", *FACTS]
    for metric in METRICS:
        head += [metric, f"{metric}_std", f"published_{metric}", f"gap_{metric}"]
    out = io.StringIO()
    rows = [head]
    for r in summary.records:
        seeds = sorted({seed for stat in r.metrics.values() for seed in stat.seeds})
        row = [r.protocol, r.trainer, r.config, r.shots, r.source, r.dataset]
        row += [r.classes, r.corruption, r.severity or ""]
        row += ["" if not r.seeded else " ".join(map(str, seeds)), " ".join(r.sees)]
        row += [r.facts.get(fact) for fact in FACTS]
        for metric in METRICS:
            stat, paper = r.metrics.get(metric), r.published.get(metric)
            gap = None if stat is None or paper is None else stat.mean - paper
            row += [stat and stat.mean, stat and stat.std, paper, gap]
        rows.append(row)
    write_csv_rows(out, rows)
    return out.getvalue().rstrip("\n")


def as_json(summary: Summary, layout: Layout = USUAL) -> str:
    """Return the records, differences, single values, missing runs and refused rows."""
    content = {
        "differences": [_difference(one) for one in comparisons(summary, layout.against)],
        "values": values(summary),
        "records": [asdict(record) for record in summary.records],
        "missing": summary.missing,
        "refused": summary.refused,
    }
    return json_text(content, indent=2)


def _of_tables(write: Callable[[list[Table]], str]) -> Callable[..., str]:
    return lambda summary, layout=USUAL, screen=FILE: write(make_tables(summary, layout))


def _text(summary: Summary, layout: Layout = USUAL, screen: Screen = FILE) -> str:
    return as_text(make_tables(summary, layout), screen)


def _difference(one: Comparison) -> dict[str, Any]:
    row, other = one.row, one.other
    return {
        **{"protocol": row.protocol, "source": row.source, "shots": row.shots},
        **{"trainer": row.trainer, "config": row.config, "metric": one.metric},
        **{"against": other.trainer, "against_config": other.config},
        **asdict(one.difference),
        **{"datasets": one.datasets, "without": one.without},
        **{"sweep": one.sweep, "setting": one.label},
    }


FORMATS: dict[str, Callable[..., str]] = {
    "text": _text,
    "markdown": _of_tables(as_markdown),
    "latex": _of_tables(as_latex),
    "csv": lambda summary, layout=USUAL, screen=FILE: as_csv(summary),
    "json": lambda summary, layout=USUAL, screen=FILE: as_json(summary, layout),
}
