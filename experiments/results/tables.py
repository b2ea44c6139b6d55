"""Records as tables, laid out as the paper does; rendering.py writes them."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass, field, replace

from experiments.results import published
from experiments.results.folders import TRANSDUCTIVE
from experiments.results.records import (
    AVERAGE,
    HALVES,
    TOGETHER,
    TRANSFERS,
    Record,
    Row,
    Stat,
    shots_text,
)
from experiments.results.scores import Score
from experiments.results.summary import Summary
from experiments.results.under_corruption import COLUMNS, CORRUPTED
from experiments.results.what_ran import FACTS, told_apart
from tuning.naming import bare_name
from tuning.sees import footnotes, known, marks, meanings

TITLES = {
    "base_to_new": "Base to new",
    TRANSDUCTIVE: "Base and new, trained on images of all classes",
    TOGETHER: "Base and new together",
    "all_classes": "All classes",
    "cross_dataset": "Cross-dataset transfer",
    "domain_generalization": "Domain generalisation",
    CORRUPTED: "Corruptions",
    "few_shot": "Few-shot learning",
    "lambda": "Weight of the CAT loss (λ)",
    "ablation": "Ablation",
}
HEADS = {"base": "Base", "new": "New", "h": "H", "accuracy": "Accuracy"}
ERRORS = {"ece_base": "ECE base", "ece_new": "ECE new", "ece": "ECE"}  # the least is best
HEADS |= ERRORS
HEADS |= {"difference": "Difference", "interval": "95 % interval", "p": "p", "holm": "Holm"}
HEADS |= {column: column.capitalize() for column in COLUMNS} | {"jpeg": "JPEG"}


@dataclass
class Line:
    """A line of a table: what it is about, and a number per column."""

    keys: list[str]
    cells: dict[str, Stat]
    published: dict[str, float] = field(default_factory=dict)
    elsewhere: tuple[published.Elsewhere, ...] = ()
    ours: bool = True  # or one of the field's own
    like: dict[str, Hashable] = field(default_factory=dict)  # per column: what it is ranked among
    best: set[str] = field(default_factory=set)  # the columns in which it is
    last: str = ""  # in place of its seeds


@dataclass
class Table:
    """`heads` name the key columns, `columns` the number columns."""

    title: str
    heads: list[str]
    columns: list[str]
    lines: list[Line]
    grouped: bool = False  # lines with the same first key stand together
    notes: list[str] = field(default_factory=list)  # beneath it
    last: str = "Seeds"  # the head of the last column

    def __post_init__(self) -> None:
        """Find the best number of each column, or several if they are printed alike."""
        groups: dict[tuple, list[Line]] = {}
        for line in self.lines:
            for column in self.columns:
                if column in line.cells and column in line.like:
                    group = line.keys[0] if self.grouped else ""
                    groups.setdefault((column, group, line.like[column]), []).append(line)
        for (column, *_), lines in groups.items():
            shown = [round(line.cells[column].mean, 2) for line in lines]
            top = (min if column in ERRORS else max)(shown)
            for line, value in zip(lines, shown, strict=True):
                if len(lines) > 1 and value == top:
                    line.best.add(column)

    def has_best(self, column: str) -> bool:
        """Whether a number of a column is the best of several."""
        return any(column in line.best for line in self.lines)

    @property
    def ranked(self) -> bool:
        """Whether any number is the best of several."""
        return any(line.best for line in self.lines)

    @property
    def sources(self) -> list[str]:
        """Where numbers of the field come from: "re-run: a figure"; they are counted from 1."""
        return list(dict.fromkeys(source_of(e) for line in self.lines for e in line.elsewhere))

    @property
    def footnotes(self) -> list[str]:
        """What stands beneath it, a line each."""
        numbered = (f"({i}) {source}" for i, source in enumerate(self.sources, start=1))
        return [*self.notes, *numbered]


def source_of(numbers: published.Elsewhere) -> str:
    """Return how a footnote calls the source of numbers of the field."""
    return f"{numbers.what}: {numbers.source}"


@dataclass(frozen=True)
class Layout:
    """How tables are laid out.

    by_sees: apart for each choice of what methods see, those that see least first.
    field: with a table of all that the field published.
    ece: expected calibration errors beside the accuracies of base and new classes.
    against: the trainer that differences are to; "": to each method without its DePT.
    """

    by_sees: bool = False
    field: bool = False
    ece: bool = False
    against: str = ""


USUAL = Layout()


def by_what_is_seen(summary: Summary, ece: bool) -> list[Table]:
    """Return the tables of all protocols, apart for each choice of what methods see."""
    groups = sorted({known(r.sees) for r in summary.records}, key=lambda g: (len(g), marks(g)))
    tables = []
    for group in groups:
        alike = [record for record in summary.records if known(record.sees) == group]
        for table in plain_tables(replace(summary, records=alike), ece):
            tables.append(replace(table, title=f"{table.title}; seen: {meanings(group)}"))
    return tables


def plain_tables(summary: Summary, ece: bool) -> list[Table]:
    """Return the tables of all protocols that have records."""
    tables = []
    for protocol in HALVES:
        halves = summary.usual(protocol)
        for shots in sorted({r.shots for r in halves}, reverse=True):
            of_shots = [r for r in halves if r.shots == shots]
            columns = ["base", "new", "h", *(["ece_base", "ece_new"] if ece else [])]
            title = f"{TITLES[protocol]}, {shots_text(shots)}"
            tables.append(_by_dataset(title, of_shots, columns))
    together = summary.of(TOGETHER)
    for shots in sorted({r.shots for r in together}, reverse=True):
        of_shots = [r for r in together if r.shots == shots]
        columns = ["accuracy", "base", "new", "h", *(["ece"] if ece else [])]
        tables.append(_by_dataset(f"{TITLES[TOGETHER]}, {shots_text(shots)}", of_shots, columns))
    for protocol in TRANSFERS:
        records = summary.of(protocol)
        for source, shots in sorted({(r.source, r.shots) for r in records}):
            chosen = [r for r in records if (r.source, r.shots) == (source, shots)]
            title = f"{TITLES[protocol]} from {source}, {shots_text(shots)}"
            tables.append(_one_line_per_method(title, chosen))
    all_classes = summary.of("all_classes")
    for shots in sorted({r.shots for r in all_classes}, reverse=True):
        of_shots = [r for r in all_classes if r.shots == shots]
        tables.append(
            _one_line_per_method(f"{TITLES['all_classes']}, {shots_text(shots)}", of_shots)
        )
    tables += _few_shot(summary)
    tables += _corruptions(summary)
    tables += _sweep(summary, "lambda", "λ") + _sweep(summary, "ablation", "Setting")
    return tables


def _names(records: Iterable[Record]) -> list[str]:
    return list(dict.fromkeys(record.dataset for record in records))


def _by_dataset(title: str, records: list[Record], columns: list[str]) -> Table:
    """Return these columns with the average first, methods beneath each other per data set."""
    names = sorted(_names(records), key=lambda name: name != AVERAGE)
    method = method_names(records)
    lines = [
        replace(_line([name, method(r)], r), elsewhere=r.elsewhere)
        for name in names
        for r in sorted(records, key=method_order)
        if r.dataset == name
    ]
    heads, notes = ["Data set", "Method"], _notes(records, method)
    return Table(title, heads, columns, lines, grouped=True, notes=notes)


def field_table(summary: Summary) -> Table:
    """Return all that the field published of base to new, on the runs' data sets and on average."""
    datasets = [AVERAGE, *(n for n in published.datasets("base_to_new") if n in _tested(summary))]
    lines, words = [], set()
    for name in datasets:
        for e in published.elsewhere():
            if e.dataset == name:
                found = marks(e.sees)
                method = f"{e.method} [{found}]" if found else e.method
                cells = {key: Stat(value, None, ()) for key, value in e.numbers.items()}
                like: dict[str, Hashable] = dict.fromkeys(cells, e.sees)
                lines.append(Line([name, method], cells, elsewhere=(e,), ours=False, like=like))
                words |= set(e.sees)
    title = (
        f"{TITLES['base_to_new']} in the field, {shots_text(published.SHOTS)}, {published.BACKBONE}"
    )
    heads, columns = ["Data set", "Method"], ["base", "new", "h"]
    return Table(title, heads, columns, lines, grouped=True, notes=footnotes(words))


def _tested(summary: Summary) -> set[str]:
    return {record.dataset for record in summary.of("base_to_new")}


def _one_line_per_method(title: str, records: list[Record]) -> Table:
    """Return a column per data set, a line per method."""
    columns = sorted(_names(records), key=lambda name: name == AVERAGE)
    method = method_names(records)
    lines: dict[str, Line] = {}
    for record in sorted(records, key=method_order):
        line = lines.setdefault(method(record), Line([method(record)], {}, last=_last(record)))
        line.cells[record.dataset] = record.metrics["accuracy"]
        line.like[record.dataset] = record.like
        if record.published:
            line.published[record.dataset] = record.published["accuracy"]
    return Table(title, ["Method"], columns, list(lines.values()), notes=_notes(records, method))


def _few_shot(summary: Summary) -> list[Table]:
    """Return how the accuracies grow with the shots, if there is more than one number of shots."""
    tables = []
    for protocol, columns in (("base_to_new", ["base", "new", "h"]), ("all_classes", ["accuracy"])):
        records = summary.usual(protocol)
        shots = {name: {r.shots for r in records if r.dataset == name} for name in _names(records)}
        several = {name for name in shots if len(shots[name]) > 1}
        chosen = [r for r in records if r.dataset in ({AVERAGE} & several or several)]
        if not chosen:
            continue
        method = method_names(chosen)
        chosen.sort(key=lambda r: (r.dataset, method_order(r), r.shots))
        lines = [_line([r.dataset, method(r), str(r.shots)], r) for r in chosen]
        title = f"{TITLES['few_shot']}, {TITLES[protocol].lower()}"
        heads = ["Data set", "Method", "Shots"]
        tables.append(
            Table(title, heads, columns, lines, grouped=True, notes=_notes(chosen, method))
        )
    return tables


def _corruptions(summary: Summary) -> list[Table]:
    """Return a table per severity, classes and shots: a column per corruption."""
    records = summary.of(CORRUPTED)
    method = method_names(records)
    tables = []
    for key in dict.fromkeys((r.severity, r.classes, r.shots) for r in records):
        chosen = [r for r in records if (r.severity, r.classes, r.shots) == key]
        chosen.sort(key=lambda r: (r.dataset != AVERAGE, r.dataset, method_order(r)))
        lines: dict[tuple[str, str], Line] = {}
        for record in chosen:
            keys = (record.dataset, method(record))
            line = lines.setdefault(keys, Line(list(keys), {}, last=_last(record)))
            line.cells[record.corruption] = record.metrics["accuracy"]
            line.like[record.corruption] = record.like
        severity, classes, shots = key
        title = f"{TITLES[CORRUPTED]}, severity {severity}, {classes} classes, {shots_text(shots)}"
        heads, columns = ["Data set", "Method"], list(COLUMNS)
        made, notes = list(lines.values()), _notes(chosen, method)
        tables.append(Table(title, heads, columns, made, grouped=True, notes=notes))
    return tables


def _sweep(summary: Summary, protocol: str, head: str) -> list[Table]:
    """Return a table for each choice of data sets that the lines are about."""
    records = summary.of(protocol)
    families: dict[str, set[str]] = {}
    for r in records:
        families.setdefault(r.trainer, set()).add(r.family)
    tables = []
    for source, over in sorted({(r.source, r.over) for r in records}):
        mine = [r for r in records if (r.source, r.over) == (source, over)]

        def method(r: Record) -> str:
            several = len(families[r.trainer]) > 1
            return _marked(f"{r.trainer} {r.family}" if several else r.trainer, r)

        lines = [_line([r.dataset, method(r), str(r.shots)], r) for r in mine]
        notes = [f"average over {', '.join(over)}"] if len(over) > 1 else []
        title, heads = f"{TITLES[protocol]}, {source}", [head, "Method", "Shots"]
        notes += _notes(mine, method)
        tables.append(Table(title, heads, ["base", "new", "h"], lines, notes=notes))
    return tables


def method_names(records: Iterable[Record | Row]) -> Callable[[Record | Row], str]:
    """Return how to name a record's method: its trainer, and its config if there are several.

    Letters say what it sees beside labeled training images and their classes' names.
    """
    configs: dict[str, set[str]] = {}
    for record in records:
        configs.setdefault(record.trainer, set()).add(record.config)
    return lambda r: _marked(
        r.trainer if len(configs[r.trainer]) == 1 else f"{r.trainer} {r.config}", r
    )


def _marked(name: str, record: Record | Row) -> str:
    found = marks(record.sees)
    return f"{name} [{found}]" if found else name


def _last(record: Record) -> str:
    return "" if record.seeded else "1 run, no seed"


def _line(keys: list[str], record: Record) -> Line:
    like: dict[str, Hashable] = dict.fromkeys(record.metrics, record.like)
    return Line(keys, record.metrics, record.published, like=like, last=_last(record))


def _notes(records: Sequence[Record], method: Callable[[Record], str]) -> list[str]:
    """Return what stands beneath a table of these records.

    That is: what the letters behind names of methods say; in what the methods differ; which
    averages leave out data sets that others have.
    """
    lines = footnotes({word for record in records for word in record.sees})
    lines += told_apart((method(record), record.facts) for record in records)
    averages = [record for record in records if record.dataset == AVERAGE]
    names = dict.fromkeys(name for record in averages for name in record.over)
    for record in averages:
        if absent := [name for name in names if name not in record.over]:
            lines.append(f"the average of {method(record)} is without {', '.join(absent)}")
    return list(dict.fromkeys(lines))


def runs_table(summary: Summary) -> Table:
    """Return what each method ran with: a line for each trainer and config."""
    heads = ["Method", "Config", "Backbone", "Schedule", "Versions", "Sees"]
    lines: dict[tuple[str, str], Line] = {}
    for row in sorted(summary.rows, key=method_order):
        told = [row.facts.get(fact, "") for fact in FACTS]
        sees = meanings(row.sees) if row.identified else ""
        line = Line([row.trainer, row.config, *told, sees], {})
        line = lines.setdefault((row.trainer, row.config), line)
        seeds = {seed for cell in row.cells.values() for seed in cell}
        seeds |= {seed for stat in line.cells.values() for seed in stat.seeds}
        line.cells["seeds"] = Stat(0, None, tuple(sorted(seeds)))
    return Table("What was run", heads, [], list(lines.values()))


def method_order(record: Record | Row | Score) -> tuple:
    """Return what sorts methods: the paper's order, others before, a method before its DePT_."""
    bare = bare_name(record.trainer)
    known = published.methods()
    place = known.index(bare) if bare in known else -1
    return place, bare, record.trainer != bare, record.config
