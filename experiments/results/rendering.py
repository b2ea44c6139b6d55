"""Tables and records as text, Markdown, LaTeX, CSV and JSON."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import asdict, dataclass

from tabulate import SEPARATING_LINE, DataRow, TableFormat, tabulate

from dassl.utils import json_text
from dassl.utils.cli import escape_markdown, markdown_table, write_csv_rows
from experiments.results.published import Elsewhere
from experiments.results.summary import Stat, Summary
from experiments.results.tables import HEADS, USUAL, Line, Table, make_tables, source_of


def _head(column: str) -> str:
    return HEADS.get(column, column)


def _seeds(line: Line) -> str:
    """Return the seeds behind a line; "1-3" for a run of them, "1 2 / 1-3" where cells differ."""
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
    return f"{stat.mean:.2f}" + ("" if stat.std is None else f" ± {stat.std:.2f}")


@dataclass
class GridRow:
    """A row of text cells.

    `kind`: head, ours, paper (its numbers), gap (ours less the paper's), elsewhere (the field's).
    """

    kind: str
    cells: list[str]

    @property
    def beneath(self) -> bool:
        """Whether it belongs to the row of ours above it."""
        return self.kind in ("paper", "gap", "elsewhere")


def grid(table: Table, number: Callable[[Stat | None], str] = number) -> list[GridRow]:
    """Return the table as text cells, the head first; the paper's numbers and gaps beneath ours."""
    head = [*table.heads, *(_head(column) for column in table.columns), "Seeds"]
    rows = [GridRow("head", head)]
    blank = [""] * (len(table.heads) - 1)
    for line in table.lines:
        stats = [line.cells.get(column) for column in table.columns]
        seeds = _seeds(line) if line.ours else " ".join(_source(table, e) for e in line.elsewhere)
        rows.append(GridRow("ours", [*line.keys, *map(number, stats), seeds]))
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


def _indented(table: Table, row: GridRow) -> list[str]:
    """Return a row's cells, the last key of what stands beneath ours set in."""
    last = len(table.heads) - 1
    return [f"  {c}" if row.beneath and i == last else c for i, c in enumerate(row.cells)]


_PLAIN = TableFormat(None, None, None, None, *[DataRow("", "  ", "")] * 2, 0, None)


def as_text(tables: list[Table]) -> str:
    """Return aligned columns for a terminal."""
    return "\n\n".join(map(_text_of, tables))


def _text_of(table: Table) -> str:
    rows: list[list[str] | str] = []
    previous = ""
    for row in grid(table):
        ours = row.kind == "ours"
        if ours and table.grouped and row.cells[0] != previous:
            rows.append(SEPARATING_LINE)
        cells = _indented(table, row)
        if ours and cells[0] == previous and len(table.heads) > 1:
            cells[0] = ""
        previous = row.cells[0] if ours else previous
        rows.append(cells)
    keys = len(table.heads)
    lines = tabulate(
        rows,
        tablefmt=_PLAIN,
        colalign=["left"] * keys + ["right"] * (len(table.columns) + 1),
        disable_numparse=True,
        preserve_whitespace=True,
    ).split("\n")
    rule = "-" * len(lines[0])
    body = (
        lines[2:] if table.grouped and table.lines else lines[1:]
    )  # the first group is at the top
    return "\n".join([table.title, rule, lines[0], rule, *body, *table.footnotes])


def as_markdown(tables: list[Table]) -> str:
    """Return GitHub's Markdown tables."""
    blocks = []
    for table in tables:
        rows = [[escape_markdown(text) for text in _indented(table, row)] for row in grid(table)]
        title = escape_markdown(table.title)
        parts = [f"**{title}**", markdown_table(rows, len(table.heads))]
        blocks.append("\n\n".join([*parts, *map(escape_markdown, table.footnotes)]))
    return "\n\n".join(blocks)


_LATEX = str.maketrans(
    {
        **{c: rf"\{c}" for c in "_%&#${}"},
        "\\": r"\textbackslash{}",
        "~": r"\textasciitilde{}",
        "^": r"\textasciicircum{}",
        "@": r"{@}",
        "λ": r"$\lambda$",
    }
)


def _latex_number(stat: Stat | None) -> str:
    text = number(stat)
    mean, sign, std = text.partition(" ± ")
    return rf"{mean}{{\scriptsize$\,\pm\,${std}}}" if sign else mean


def as_latex(tables: list[Table]) -> str:
    """Return booktabs tables, one float each."""
    blocks = []
    for table in tables:
        rows = [_indented(table, row) for row in grid(table, _latex_number)]
        keys = len(table.heads)
        rows[0] = [text.translate(_LATEX) for text in rows[0]]
        for row in rows[1:]:
            row[:keys] = [text.translate(_LATEX) for text in row[:keys]]
        body = [" & ".join(row) + r" \\" for row in rows]
        caption = f"{table.title}. Accuracy in percent: mean, standard deviation over seeds."
        caption += "".join(f" {note}." for note in table.footnotes)
        block = [
            r"\begin{table}[t]",
            r"\centering",
            rf"\caption{{{caption.translate(_LATEX)}}}",
            rf"\begin{{tabular}}{{{'l' * keys}{'r' * (len(rows[0]) - keys)}}}",
            r"\toprule",
            body[0],
            r"\midrule",
            *body[1:],
            r"\bottomrule",
            r"\end{tabular}",
            r"\end{table}",
        ]
        blocks.append("\n".join(block))
    return "\n\n".join(blocks)


METRICS = ("base", "new", "h", "accuracy", "ece_base", "ece_new", "ece")


def as_csv(summary: Summary) -> str:
    """Return one line per record: full precision, empty where a protocol has no such number."""
    head = ["protocol", "trainer", "config", "shots", "source", "dataset"]
    head += ["classes", "corruption", "severity", "seeds", "sees"]
    for metric in METRICS:
        head += [metric, f"{metric}_std", f"published_{metric}", f"gap_{metric}"]
    out = io.StringIO()
    rows = [head]
    for r in summary.records:
        seeds = sorted({seed for stat in r.metrics.values() for seed in stat.seeds})
        row = [r.protocol, r.trainer, r.config, r.shots, r.source, r.dataset]
        row += [r.classes, r.corruption, r.severity or ""]
        row += [" ".join(map(str, seeds)), " ".join(r.sees)]
        for metric in METRICS:
            stat, paper = r.metrics.get(metric), r.published.get(metric)
            gap = None if stat is None or paper is None else stat.mean - paper
            row += [stat and stat.mean, stat and stat.std, paper, gap]
        rows.append(row)
    write_csv_rows(out, rows)
    return out.getvalue().rstrip("\n")


def as_json(summary: Summary) -> str:
    """Return the records, the missing runs and the refused rows."""
    content = {
        "records": [asdict(record) for record in summary.records],
        "missing": summary.missing,
        "refused": summary.refused,
    }
    return json_text(content, indent=2)


def _of_tables(write: Callable[[list[Table]], str]) -> Callable[..., str]:
    return lambda summary, layout=USUAL: write(make_tables(summary, layout))


def _of_records(write: Callable[[Summary], str]) -> Callable[..., str]:
    """A record says by itself what is seen and what others published."""
    return lambda summary, layout=USUAL: write(summary)


FORMATS: dict[str, Callable[..., str]] = {
    "text": _of_tables(as_text),
    "markdown": _of_tables(as_markdown),
    "latex": _of_tables(as_latex),
    "csv": _of_records(as_csv),
    "json": _of_records(as_json),
}
