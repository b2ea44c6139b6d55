"""From scores to the records of each protocol: means, spreads, H, the paper's numbers, gaps.

One record is one line of a table: a method on a data set, or on the average of its data sets.
Standard deviations are over seeds, of the sample (n - 1). H is taken of mean accuracies: on a data
set of the means over seeds, on an average row of the averaged base and new accuracies.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from statistics import fmean

from experiments.results import published
from experiments.results.agreement import check_data, shared_settings
from experiments.results.records import (
    AVERAGE,
    HALVES,
    TOGETHER,
    TRANSFERS,
    BySeed,
    Record,
    Row,
    Stat,
)
from experiments.results.scores import Key, Score
from experiments.results.what_ran import facts
from tuning.sees import known


@dataclass
class Summary:
    """The rows, their scores and records, the runs that are missing, the rows that are refused.

    swept: the keys of rows that stand in the table of a sweep alone, and for each that of the row
    with the usual setting, if there is one.
    """

    scores: list[Score] = field(default_factory=list)
    rows: list[Row] = field(default_factory=list)
    records: list[Record] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)
    swept: dict[Key, Key | None] = field(default_factory=dict)

    @property
    def unidentified(self) -> list[str]:
        """The folders of results of before, which don't say what their numbers depend on."""
        return [str(score.folder) for score in self.scores if not score.identified]

    @property
    def note_on_unidentified(self) -> str:
        """A line on them; "" if there is none."""
        number = len(self.unidentified)
        if not number:
            return ""
        return (
            f"{number} of {len(self.scores)} results don't say what their numbers depend on "
            "(written before there were identities, or by other code): whether their data agree "
            "isn't checked, and what they saw isn't marked"
        )

    @property
    def notes(self) -> list[str]:
        """What is to be known of the numbers, a line each."""
        return [*filter(None, [self.note_on_unidentified]), *self.remarks]

    def of(self, protocol: str) -> list[Record]:
        """Return the records of one protocol."""
        return [record for record in self.records if record.protocol == protocol]

    def usual(self, protocol: str) -> list[Record]:
        """Return those of one protocol that stand in no table of a sweep alone."""
        return [record for record in self.of(protocol) if not self.is_swept(record)]

    def is_swept(self, what: Record | Score) -> bool:
        """Whether it belongs to a row that stands in the table of a sweep alone."""
        return what.key in self.swept


def summarize(
    scores: Iterable[Score], seeds: Iterable[int] = (), datasets: Iterable[str] = ()
) -> Summary:
    """Return the records of every protocol that the scores belong to.

    A run is missing if its row has other runs of that seed, or rows with the same changed settings
    have that data set; `seeds` and `datasets` say what is wanted instead.
    """
    seeds, datasets = set(seeds), set(datasets)
    groups = defaultdict(list)
    for score in scores:
        transfer_source = datasets and score.protocol == "all_classes"
        if (seeds and score.seeded and score.seed not in seeds) or (
            datasets and score.dataset not in datasets and not transfer_source
        ):
            continue
        key = (score.protocol, score.source, score.trainer, score.config, score.shots)
        groups[(*key, score.corruption, score.severity)].append(score)

    summary = Summary()
    for key, group in sorted(groups.items()):
        row = Row(*key)
        try:
            summary.remarks += _fill(row, group)
            summary.rows.append(row)
            summary.scores += group
        except ValueError as error:
            summary.refused.append(f"{row.name}: {error}")
    summary.remarks += _note_disputed(summary.rows)
    for row in summary.rows:
        if row.protocol in TRANSFERS:
            _add_source(row, summary.rows)
        if not row.corruption:  # those together make a line: corruptions.py
            lines = dict.fromkeys(HALVES, _base_new_lines) | {TOGETHER: _together_lines}
            summary.records += lines.get(row.protocol, _accuracy_lines)(row)
        summary.missing += _missing(row, summary.rows, seeds, datasets)
    return summary


def _fill(row: Row, scores: list[Score]) -> list[str]:
    """Put the scores into the row; return what is to be remarked on.

    Raises ValueError if they can't stand in one row.
    """
    first: dict[tuple, Score] = {}
    for score in scores:
        key = (score.dataset, score.classes, score.seed)
        if key in first:
            unnamed = score.result.get("dataset_label") == ""
            hint = "; give each data set of your own a DATASET.LABEL" if unnamed else ""
            both = f"{first[key].folder} and {score.folder}"
            raise ValueError(f"two results for one run: {both}{hint}")
        first[key] = score
        row.cells[score.dataset, score.classes][score.seed] = score.accuracy
        if score.ece is not None:
            row.ece[score.dataset, score.classes][score.seed] = score.ece
        if row.protocol == TOGETHER:
            for part, accuracy in score.halves.items():
                row.cells[score.dataset, part][score.seed] = accuracy
    row.backbone = next((score.backbone for score in scores if score.backbone), "")
    shas = (score.result.get("backbone_sha256") for score in scores)
    row.weights = next(filter(None, shas), row.backbone)
    row.facts = facts(scores)
    row.tested = {(s.dataset, s.classes): s.tested for s in scores if s.tested}
    row.sees = known(word for score in scores for word in score.sees)
    row.identified = all(score.identified for score in scores)
    row.settings, unknown = shared_settings(scores)
    check_data(scores)
    _keep_one_run(row, scores)
    if not unknown:
        return []
    return [
        f"{row.name}: only some runs have {', '.join(sorted(unknown))}, of which this version "
        "knows no default: not compared"
    ]


def _note_disputed(rows: list[Row]) -> list[str]:
    """Tell rows which of their data sets others have with other images or classes; say it."""
    kinds: dict[tuple, dict[str, list[Row]]] = {}
    for row in rows:
        for (name, classes), digest in row.tested.items():
            key = (name, classes, row.corruption, row.severity)
            kinds.setdefault(key, {}).setdefault(digest, []).append(row)
    lines = []
    for (name, classes, *_), of_digest in kinds.items():
        if len(of_digest) > 1:
            fewest = min(of_digest.values(), key=len)
            for row in sum(of_digest.values(), []):
                row.disputed.add(name)
            others = ", ".join(dict.fromkeys(row.name for row in fewest))
            lines.append(
                f"{name}, {classes} classes: not all rows were tested on the same images and "
                f"classes, so that they aren't ranked; otherwise than most: {others}"
            )
    return lines


def _keep_one_run(row: Row, scores: list[Score]) -> None:
    """Of numbers that depend on no seed, keep one; those that differ all the same stay."""
    if all(score.seeded for score in scores):
        return
    cells = [*row.cells.values(), *row.ece.values()]
    if all(len(set(cell.values())) == 1 for cell in cells):
        row.seeded = False
        for cell in cells:
            for seed in sorted(cell)[1:]:
                del cell[seed]


def _add_source(row: Row, rows: list[Row]) -> None:
    """Give a transfer row the accuracy of its model at home: the all-classes run of the source."""
    key = (row.trainer, row.config, row.shots)
    for other in rows:
        if other.protocol == "all_classes" and (other.trainer, other.config, other.shots) == key:
            at_home = other.cells.get((row.source, "all"))
            if at_home:
                row.cells[row.source, "all"] = at_home


def average(cells: list[BySeed]) -> tuple[float, BySeed]:
    """Return the mean over data sets, and {seed: mean} for the seeds that all of them have."""
    common = set.intersection(*(set(cell) for cell in cells))
    return (
        fmean(fmean(cell.values()) for cell in cells),
        {seed: fmean(cell[seed] for cell in cells) for seed in sorted(common)},
    )


def base_new_h(bases: list[BySeed], news: list[BySeed]) -> dict[str, Stat]:
    """Return base, new and H over data sets (one or more); without a part, the other alone."""
    metrics, parts = {}, {}
    for name, cells in (("base", bases), ("new", news)):
        if all(cells):
            mean, parts[name] = average(cells)
            metrics[name] = Stat.of(parts[name], mean) if parts[name] else Stat(mean, None, ())
    if len(metrics) == 2:
        base, new = parts["base"], parts["new"]
        paired = {s: published.harmonic_mean(base[s], new[s]) for s in base if s in new}
        h = published.harmonic_mean(metrics["base"].mean, metrics["new"].mean)
        metrics["h"] = Stat.of(paired, h) if paired else Stat(h, None, ())
    return metrics


def row_base_new_h(row: Row, names: list[str]) -> dict[str, Stat]:
    """Return base, new and H of a row, averaged over the data sets `names`; and their ECE."""
    parts = [[row.cells.get((n, part), {}) for n in names] for part in ("base", "new")]
    metrics = base_new_h(*parts)
    for part in ("base", "new"):
        if found := mean_of([row.ece.get((n, part), {}) for n in names]):
            metrics[f"ece_{part}"] = found
    return metrics


def mean_of(cells: list[BySeed]) -> Stat | None:
    """Return the mean over data sets; None where one has nothing."""
    if not all(cells):
        return None
    mean, by_seed = average(cells)
    return Stat.of(by_seed, mean) if by_seed else Stat(mean, None, ())


def whole_datasets(row: Row) -> list[str]:
    """Return the data sets of a base-to-new row that have both accuracies."""
    return [n for n in row.datasets if (n, "base") in row.cells and (n, "new") in row.cells]


def _base_new_lines(row: Row) -> list[Record]:
    lines = [row.record(n, row_base_new_h(row, [n]), row.papers(n)) for n in row.datasets]
    lines = [replace(line, elsewhere=row.elsewhere(line.dataset)) for line in lines]
    whole = whole_datasets(row)
    if len(whole) > 1:
        # The paper's average is that of its eleven data sets, and of no other choice.
        same = set(whole) == set(published.datasets("base_to_new"))
        in_paper = same and row.protocol == "base_to_new"
        paper = published.average(row.trainer, row.shots) if in_paper else {}
        mean = row.record(AVERAGE, row_base_new_h(row, whole), paper, whole)
        lines.append(replace(mean, elsewhere=row.elsewhere(AVERAGE) if same else ()))
    return lines


def _together_lines(row: Row) -> list[Record]:
    """Return lines of a model of base classes on all: their accuracy, its halves and their H."""
    lines = []
    groups = [[name] for name in row.datasets]
    for names in [*groups, row.datasets] if len(groups) > 1 else groups:
        both = [[row.cells.get((n, part), {}) for n in names] for part in ("base", "new")]
        metrics = base_new_h(*both)
        for key, cells in (("accuracy", row.cells), ("ece", row.ece)):
            if found := mean_of([cells.get((n, "all"), {}) for n in names]):
                metrics[key] = found
        one = len(names) == 1
        lines.append(row.record(names[0] if one else AVERAGE, metrics, over=() if one else names))
    return lines


def _accuracy_lines(row: Row) -> list[Record]:
    """Return the lines of a protocol with one accuracy; an average leaves the source out."""
    in_paper = row.protocol in TRANSFERS
    at_home = [row.source] if (row.source, "all") in row.cells else []
    lines = []
    for name in at_home + row.datasets:
        metrics = {"accuracy": Stat.of(row.cells[name, "all"])}
        lines.append(row.record(name, metrics, row.papers(name) if in_paper else {}))
    if len(row.datasets) > 1:
        stat = mean_of([row.cells[name, "all"] for name in row.datasets])
        assert stat is not None
        same = in_paper and {row.source, *row.datasets} == set(published.datasets(row.protocol))
        paper = row.papers(AVERAGE) if same else {}
        lines.append(row.record(AVERAGE, {"accuracy": stat}, paper, row.datasets))
    return lines


def _missing(row: Row, rows: list[Row], seeds: set[int], datasets: set[str]) -> list[str]:
    """Name what a row lacks, a line for each data set and set of classes."""
    key = (row.protocol, row.changes, row.corruption, row.severity)
    alike = [r for r in rows if (r.protocol, r.changes, r.corruption, r.severity) == key]
    wanted = datasets or {n for r in alike if r.shots == row.shots for n in r.datasets}
    parts: Iterable[str] = ("base", "new") if row.protocol in HALVES else ("all",)
    if row.corruption:
        parts = sorted({classes for r in alike for _, classes in r.cells})
    if row.protocol == "all_classes":
        wanted = set(row.datasets)  # the source of a transfer stands here alone
    if row.source:
        wanted = {row.source, *wanted}
    if not row.seeded:  # one run is all
        lacking = [n for n in sorted(wanted) for p in parts if not row.cells.get((n, p))]
        return [f"{row.name}: {name}" for name in dict.fromkeys(lacking)]
    seeds = seeds or {seed for cell in row.cells.values() for seed in cell}
    lines = []
    for dataset in sorted(wanted):
        for part in parts:
            absent = sorted(seeds - set(row.cells.get((dataset, part), ())))
            if absent:
                listed = f"seed{'s' * (len(absent) > 1)} {', '.join(map(str, absent))}"
                lines.append(f"{row.name}: {dataset}, {part} classes, {listed}")
    return lines
