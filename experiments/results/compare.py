"""Tables of differences between methods, tested over pairs: one data set and seed each.

A method with DePT is compared with the same without it, or all with one that is named. Data sets on
which the two have fewer than three seeds in common are left out.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from dassl.utils import UserError, suggest
from experiments.results import published
from experiments.results.pairing import EXACT, SAMPLED, Difference, compared, holm
from experiments.results.records import HALVES, TOGETHER, TRANSFERS, BySeed, Row, Told, shots_text
from experiments.results.summary import Summary
from experiments.results.tables import HEADS, TITLES, Line, Table, method_names, method_order
from experiments.results.twins import bare_row
from tuning.sees import footnotes

LEAST = 3  # seeds
# {protocol: what of it is compared}
METRICS = {
    **dict.fromkeys(HALVES, ("base", "new", "h")),
    TOGETHER: ("accuracy", "base", "new", "h"),
    **dict.fromkeys(("all_classes", *TRANSFERS), ("accuracy",)),
}


@dataclass(frozen=True)
class Comparison:
    """One row less another, in one metric; `without` are the data sets that are left out.

    sweep: the protocol where the two are lines of a sweep; `label` is then that of `row`.
    """

    row: Row
    other: Row
    metric: str
    difference: Difference
    datasets: tuple[str, ...]
    without: tuple[str, ...]
    sweep: str = ""
    label: str = ""


def comparisons(summary: Summary, against: str = "") -> list[Comparison]:
    """Return all comparisons that three common seeds allow.

    against: the trainer that the others are compared with; "": each with itself without DePT.

    Raises:
        UserError: there are no runs of it.
    """
    known = {row.trainer for row in summary.rows}
    if against and against not in known:
        raise UserError(f"--against: there are no runs of {against}{suggest(against, known)}")
    found = []
    for row in sorted(summary.rows, key=method_order):
        if row.corruption or row.protocol not in METRICS or row.key in summary.swept:
            continue
        for other in _others(row, summary.rows, against):
            for metric in METRICS[row.protocol]:
                found += _compared(row, other, metric)
    return found if against else [*found, *_in_sweeps(summary)]


def _in_sweeps(summary: Summary) -> Iterator[Comparison]:
    """Lines of λ and of the ablation, each less the one of the usual setting."""
    rows = {row.key: row for row in summary.rows if not row.corruption}
    for sweep in ("lambda", "ablation"):
        for record in summary.of(sweep):
            key = ("base_to_new", record.trainer, record.config, record.shots)
            home = summary.swept.get(key)
            label = f"λ {record.dataset}" if sweep == "lambda" else record.dataset
            for metric in METRICS["base_to_new"] if home else ():
                for one in _compared(rows[key], rows[home], metric):
                    yield replace(one, sweep=sweep, label=label)


def _others(row: Row, rows: list[Row], against: str) -> list[Row]:
    """The rows to compare one with: those of its own config, where there are any."""
    if not against:
        bare = bare_row(row, rows)
        return [bare] if bare else []
    if row.trainer == against:
        return []
    named = (row.protocol, against, row.shots, row.source)
    alike = [
        r
        for r in rows
        if (r.protocol, r.trainer, r.shots, r.source) == named
        and not r.corruption
        and r.weights == row.weights
    ]
    return [r for r in alike if r.config == row.config] or alike


def _compared(row: Row, other: Row, metric: str) -> Iterator[Comparison]:
    pairs: list[float] = []
    used, without = [], []
    for name in row.datasets:
        mine, its = (_values(r, name, metric) for r in (row, other))
        seeds = _common(mine, its, row.seeded, other.seeded)
        if len(seeds) < LEAST or not _same_data(row, other, name):
            without.append(name)
            continue
        used.append(name)
        pairs += [_at(mine, seed, row) - _at(its, seed, other) for seed in seeds]
    if pairs:
        yield Comparison(row, other, metric, compared(pairs), tuple(used), tuple(without))


def _values(row: Row, name: str, metric: str) -> BySeed:
    if metric == "h":
        base, new = (row.cells.get((name, part), {}) for part in ("base", "new"))
        return {s: published.harmonic_mean(base[s], new[s]) for s in base if s in new}
    return row.cells.get((name, "all" if metric == "accuracy" else metric), {})


def _common(mine: BySeed, its: BySeed, seeded: bool, other_seeded: bool) -> list[int]:
    """The seeds of pairs; what depends on none pairs with every seed of the other."""
    if not (mine and its):
        return []
    if not other_seeded:
        return sorted(mine)
    return sorted(its) if not seeded else sorted(mine.keys() & its.keys())


def _at(values: BySeed, seed: int, row: Row) -> float:
    return values[seed] if row.seeded else next(iter(values.values()))


def _same_data(row: Row, other: Row, name: str) -> bool:
    """Whether both were tested on the same images and classes, as far as they say."""
    return all(
        other.tested.get(key, digest) == digest
        for key, digest in row.tested.items()
        if key[0] == name
    )


def difference_tables(summary: Summary, against: str = "") -> list[Table]:
    """Return a table for each protocol, source and number of shots that has comparisons."""
    found = comparisons(summary, against)
    groups: dict[tuple, list[Comparison]] = {}
    for one in found:
        place = list(METRICS).index(one.row.protocol)
        key = (one.sweep, place, one.row.source, -one.row.shots)
        groups.setdefault(key, []).append(one)
    return [_table(groups[key]) for key in sorted(groups)]


def _table(found: list[Comparison]) -> Table:
    row = found[0].row
    source = f" from {row.source}" if row.source else ""
    what = TITLES[found[0].sweep or row.protocol]
    title = f"Differences, {what[0].lower()}{what[1:]}{source}, {shots_text(row.shots)}"
    rows = [r for one in found for r in ((one.other,) if one.label else (one.row, one.other))]
    method = method_names(rows)
    lines, notes = [], _how(found)
    for one, corrected in zip(found, holm([c.difference.p for c in found]), strict=True):
        d = one.difference
        cells = {
            "difference": Told.words(_points(d.mean)),
            "interval": Told.words(f"{_points(d.low)} to {_points(d.high)}"),
            "p": Told.words(_p(d.p)),
            "holm": Told.words(_p(corrected)),
        }
        keys = [one.label or method(one.row), method(one.other), HEADS[one.metric]]
        lines.append(Line(keys, dict(cells), last=str(d.pairs)))
        if one.without:
            left = ", ".join(one.without)
            notes.append(f"{keys[0]} less {keys[1]}: without {left} (fewer than {LEAST} seeds)")
    heads = ["Setting" if found[0].sweep else "Method", "Less", "Of"]
    columns = ["difference", "interval", "p", "holm"]
    notes += footnotes({word for one in found for r in (one.row, one.other) for word in r.sees})
    return Table(title, heads, columns, lines, notes=list(dict.fromkeys(notes)), last="Pairs")


def _points(value: float) -> str:
    return f"{round(value, 2) + 0.0:+.2f}"  # no -0.00


def _p(value: float) -> str:
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


def _how(found: list[Comparison]) -> list[str]:
    """Say which test it is, over what."""
    most = max(one.difference.pairs for one in found)
    sampled = f"; of more than {EXACT} pairs {SAMPLED:,} random patterns" if most > EXACT else ""
    return [
        "a pair is one data set and seed; H is that of the pair; differences are in points",
        f"p: sign-flip permutation test of the mean difference, two-sided, exact{sampled}",
        f"Holm: p corrected for the {len(found)} comparisons here; interval: Student's t",
        "seeds share a data set's test images: few data sets say little about others",
    ]
