"""Tables as rows of text cells, which text, Markdown, LaTeX and the report write in their ways."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from experiments.results.published import Elsewhere
from experiments.results.records import Stat, Told
from experiments.results.tables import HEADS, Line, Table, source_of

# What is marked, in words beneath a table.
BEST = "the best of those that see the same, with one backbone and number of shots"


def _head(column: str) -> str:
    return HEADS.get(column, column)


def _seeds(line: Line) -> str:
    """Return the seeds behind a line, or what stands there instead.

    "1-3" is a run of them, "1 2 / 1-3" where cells differ.
    """
    if line.last:
        return line.last
    groups = dict.fromkeys(stat.seeds for stat in line.cells.values())
    return " / ".join(_ranges(seeds) for seeds in groups)


def _ranges(seeds: tuple[int, ...]) -> str:
    if len(seeds) > 2 and list(seeds) == list(range(seeds[0], seeds[-1] + 1)):
        return f"{seeds[0]}-{seeds[-1]}"
    return ",".join(map(str, seeds)) or "none in common"


def number(stat: Stat | None) -> str:
    """Return "81.50 ± 0.32"."""
    if stat is None:
        return "missing"
    if isinstance(stat, Told):
        return stat.text
    return f"{stat.mean:.2f}" + ("" if stat.std is None else f" ± {stat.std:.2f}")


@dataclass
class GridRow:
    """A row of text cells.

    `kind`: head, ours, paper (its numbers), gap (ours less the paper's), elsewhere (the field's).
    """

    kind: str
    cells: list[str]
    best: frozenset[int] = frozenset()  # which cells are the best of their column

    @property
    def beneath(self) -> bool:
        """Whether it belongs to the row of ours above it."""
        return self.kind in ("paper", "gap", "elsewhere")


def grid(table: Table, number: Callable[[Stat | None], str] = number) -> list[GridRow]:
    """Return the table as text cells, the head first; the paper's numbers and gaps beneath ours."""
    head = [*table.heads, *(_head(column) for column in table.columns), table.last]
    rows = [GridRow("head", head)]
    blank = [""] * (len(table.heads) - 1)
    for line in table.lines:
        stats = [line.cells.get(column) for column in table.columns]
        seeds = _seeds(line) if line.ours else " ".join(_source(table, e) for e in line.elsewhere)
        first = len(table.heads)
        best = frozenset(first + i for i, name in enumerate(table.columns) if name in line.best)
        rows.append(GridRow("ours", [*line.keys, *map(number, stats), seeds], best))
        if line.published:
            paper = [line.published.get(column) for column in table.columns]
            shown = ["" if p is None else f"{p:.2f}" for p in paper]
            rows.append(GridRow("paper", [*blank, "paper", *shown, ""]))
            gaps = [
                "" if p is None or s is None else f"{s.mean - p:+.2f}"
                for p, s in zip(paper, stats, strict=True)
            ]
            rows.append(GridRow("gap", [*blank, "gap", *gaps, ""]))
        for other in line.elsewhere if line.ours else ():
            label = f"{other.what} {_source(table, other)}"
            values = (other.numbers.get(column) for column in table.columns)
            shown = ["" if value is None else f"{value:.2f}" for value in values]
            rows.append(GridRow("elsewhere", [*blank, label, *shown, ""]))
    return rows


def _source(table: Table, numbers: Elsewhere) -> str:
    """Return the number of a footnote, "(1)"."""
    return f"({table.sources.index(source_of(numbers)) + 1})"


def indented(table: Table, row: GridRow) -> list[str]:
    """Return a row's cells, the last key of what stands beneath ours set in."""
    last = len(table.heads) - 1
    return [f"  {c}" if row.beneath and i == last else c for i, c in enumerate(row.cells)]
