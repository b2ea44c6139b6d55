"""Records as tables, laid out as the paper does; text, Markdown, LaTeX, CSV and JSON."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field

from tabulate import SEPARATING_LINE, DataRow, TableFormat, tabulate

from dassl.utils import json_text
from dassl.utils.cli import escape_markdown, markdown_table, write_csv_rows
from experiments.results import published
from experiments.results.scores import Score
from experiments.results.summary import AVERAGE, TRANSFERS, Record, Row, Stat, Summary
from experiments.results.sweeps import is_swept
from experiments.results.under_corruption import COLUMNS, CORRUPTED
from tuning.naming import bare_name

TITLES = {
    "base_to_new": "Base to new",
    "all_classes": "All classes",
    "cross_dataset": "Cross-dataset transfer",
    "domain_generalization": "Domain generalisation",
    CORRUPTED: "Corruptions",
    "few_shot": "Few-shot learning",
    "lambda": "Weight of the CAT loss (λ)",
    "ablation": "Ablation",
}
HEADS = {"base": "Base", "new": "New", "h": "H", "accuracy": "Accuracy"}
HEADS |= {column: column.capitalize() for column in COLUMNS} | {"jpeg": "JPEG"}


@dataclass
class Line:
    """A line of a table: what it is about, and a number per column."""

    keys: list[str]
    cells: dict[str, Stat]
    published: dict[str, float] = field(default_factory=dict)


@dataclass
class Table:
    """`heads` name the key columns, `columns` the number columns."""

    title: str
    heads: list[str]
    columns: list[str]
    lines: list[Line]
    grouped: bool = False  # lines with the same first key stand together

    def has_published(self) -> bool:
        """Whether the paper has a number for any cell."""
        return any(line.published for line in self.lines)


def make_tables(summary: Summary) -> list[Table]:
    """Return the tables of all protocols that have records."""
    tables = []
    base_to_new = [r for r in summary.of("base_to_new") if not is_swept(r.config)]
    for shots in sorted({r.shots for r in base_to_new}, reverse=True):
        of_shots = [r for r in base_to_new if r.shots == shots]
        tables.append(_by_dataset(f"{TITLES['base_to_new']}, {_shots(shots)}", of_shots))
    for protocol in TRANSFERS:
        records = summary.of(protocol)
        for source, shots in sorted({(r.source, r.shots) for r in records}):
            chosen = [r for r in records if (r.source, r.shots) == (source, shots)]
            title = f"{TITLES[protocol]} from {source}, {_shots(shots)}"
            tables.append(_one_line_per_method(title, chosen))
    all_classes = summary.of("all_classes")
    for shots in sorted({r.shots for r in all_classes}, reverse=True):
        of_shots = [r for r in all_classes if r.shots == shots]
        tables.append(_one_line_per_method(f"{TITLES['all_classes']}, {_shots(shots)}", of_shots))
    tables += _few_shot(summary)
    tables += _corruptions(summary)
    for protocol, head in (("lambda", "λ"), ("ablation", "Setting")):
        records = summary.of(protocol)
        for source in sorted({r.source for r in records}):
            lines = [
                Line([r.dataset, r.trainer, str(r.shots)], r.metrics, r.published)
                for r in records
                if r.source == source
            ]
            title = f"{TITLES[protocol]}, {source}"
            tables.append(Table(title, [head, "Method", "Shots"], ["base", "new", "h"], lines))
    return tables


def _shots(shots: int) -> str:
    return "all images" if shots < 1 else f"{shots} shot{'s' * (shots > 1)}"


def _names(records: Iterable[Record]) -> list[str]:
    return list(dict.fromkeys(record.dataset for record in records))


def _by_dataset(title: str, records: list[Record]) -> Table:
    """Return base, new and H with the average first, methods beneath each other per data set."""
    names = sorted(_names(records), key=lambda name: name != AVERAGE)
    method = _method_names(records)
    lines = [
        Line([name, method(r)], r.metrics, r.published)
        for name in names
        for r in sorted(records, key=method_order)
        if r.dataset == name
    ]
    return Table(title, ["Data set", "Method"], ["base", "new", "h"], lines, grouped=True)


def _one_line_per_method(title: str, records: list[Record]) -> Table:
    """Return a column per data set, a line per method."""
    columns = sorted(_names(records), key=lambda name: name == AVERAGE)
    method = _method_names(records)
    lines: dict[str, Line] = {}
    for record in sorted(records, key=method_order):
        line = lines.setdefault(method(record), Line([method(record)], {}))
        line.cells[record.dataset] = record.metrics["accuracy"]
        if record.published:
            line.published[record.dataset] = record.published["accuracy"]
    return Table(title, ["Method"], columns, list(lines.values()))


def _few_shot(summary: Summary) -> list[Table]:
    """Return how the accuracies grow with the shots, if there is more than one number of shots."""
    tables = []
    for protocol, columns in (("base_to_new", ["base", "new", "h"]), ("all_classes", ["accuracy"])):
        records = [r for r in summary.of(protocol) if not is_swept(r.config)]
        shots = {name: {r.shots for r in records if r.dataset == name} for name in _names(records)}
        several = {name for name in shots if len(shots[name]) > 1}
        chosen = [r for r in records if r.dataset in ({AVERAGE} & several or several)]
        if not chosen:
            continue
        method = _method_names(chosen)
        chosen.sort(key=lambda r: (r.dataset, method_order(r), r.shots))
        lines = [Line([r.dataset, method(r), str(r.shots)], r.metrics, r.published) for r in chosen]
        title = f"{TITLES['few_shot']}, {TITLES[protocol].lower()}"
        tables.append(Table(title, ["Data set", "Method", "Shots"], columns, lines, grouped=True))
    return tables


def _corruptions(summary: Summary) -> list[Table]:
    """Return a table per severity, classes and shots: a column per corruption."""
    records = summary.of(CORRUPTED)
    method = _method_names(records)
    tables = []
    for key in dict.fromkeys((r.severity, r.classes, r.shots) for r in records):
        chosen = [r for r in records if (r.severity, r.classes, r.shots) == key]
        chosen.sort(key=lambda r: (r.dataset != AVERAGE, r.dataset, method_order(r)))
        lines: dict[tuple[str, str], Line] = {}
        for record in chosen:
            keys = (record.dataset, method(record))
            line = lines.setdefault(keys, Line(list(keys), {}))
            line.cells[record.corruption] = record.metrics["accuracy"]
        severity, classes, shots = key
        title = f"{TITLES[CORRUPTED]}, severity {severity}, {classes} classes, {_shots(shots)}"
        heads, columns = ["Data set", "Method"], list(COLUMNS)
        tables.append(Table(title, heads, columns, list(lines.values()), grouped=True))
    return tables


def _method_names(records: Iterable[Record]) -> Callable[[Record], str]:
    """Return how to name a record's method: its trainer, and its config if there are several."""
    configs: dict[str, set[str]] = {}
    for record in records:
        configs.setdefault(record.trainer, set()).add(record.config)
    return lambda r: r.trainer if len(configs[r.trainer]) == 1 else f"{r.trainer} {r.config}"


def method_order(record: Record | Row | Score) -> tuple:
    """Return what sorts methods: the paper's order, others before, a method before its DePT_."""
    bare = bare_name(record.trainer)
    known = published.methods()
    place = known.index(bare) if bare in known else -1
    return place, bare, record.trainer != bare, record.config


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
    """A row of text cells. `kind`: head, ours, paper (its numbers), gap (ours less the paper's)."""

    kind: str
    cells: list[str]

    @property
    def beneath(self) -> bool:
        """Whether it belongs to the row of ours above it."""
        return self.kind in ("paper", "gap")


def grid(table: Table, number: Callable[[Stat | None], str] = number) -> list[GridRow]:
    """Return the table as text cells, the head first; the paper's numbers and gaps beneath ours."""
    head = [*table.heads, *(_head(column) for column in table.columns), "Seeds"]
    rows = [GridRow("head", head)]
    blank = [""] * (len(table.heads) - 1)
    for line in table.lines:
        stats = [line.cells.get(column) for column in table.columns]
        rows.append(GridRow("ours", [*line.keys, *map(number, stats), _seeds(line)]))
        if line.published:
            paper = [line.published.get(column) for column in table.columns]
            shown = ["" if p is None else f"{p:.2f}" for p in paper]
            rows.append(GridRow("paper", [*blank, "paper", *shown, ""]))
            gaps = [
                "" if p is None or s is None else f"{s.mean - p:+.2f}"
                for p, s in zip(paper, stats, strict=True)
            ]
            rows.append(GridRow("gap", [*blank, "gap", *gaps, ""]))
    return rows


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
    return "\n".join([table.title, rule, lines[0], rule, *body])


def as_markdown(tables: list[Table]) -> str:
    """Return GitHub's Markdown tables."""
    blocks = []
    for table in tables:
        rows = [[escape_markdown(text) for text in _indented(table, row)] for row in grid(table)]
        title = escape_markdown(table.title)
        blocks.append(f"**{title}**\n\n{markdown_table(rows, len(table.heads))}")
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


METRICS = ("base", "new", "h", "accuracy")


def as_csv(summary: Summary) -> str:
    """Return one line per record: full precision, empty where a protocol has no such number."""
    head = ["protocol", "trainer", "config", "shots", "source", "dataset"]
    head += ["classes", "corruption", "severity", "seeds"]
    for metric in METRICS:
        head += [metric, f"{metric}_std", f"published_{metric}", f"gap_{metric}"]
    out = io.StringIO()
    rows = [head]
    for r in summary.records:
        seeds = sorted({seed for stat in r.metrics.values() for seed in stat.seeds})
        row = [r.protocol, r.trainer, r.config, r.shots, r.source, r.dataset]
        row += [r.classes, r.corruption, r.severity or ""]
        row.append(" ".join(map(str, seeds)))
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


FORMATS: dict[str, Callable[[Summary], str]] = {
    "text": lambda summary: as_text(make_tables(summary)),
    "markdown": lambda summary: as_markdown(make_tables(summary)),
    "latex": lambda summary: as_latex(make_tables(summary)),
    "csv": as_csv,
    "json": as_json,
}
