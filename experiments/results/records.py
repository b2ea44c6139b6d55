"""Rows of runs that belong together, and records: a line of a table each."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean, stdev
from typing import Any

from experiments.results import published
from experiments.results.folders import TRANSDUCTIVE, changed_settings
from experiments.results.scores import Key

AVERAGE = "average"
TRANSFERS = ("cross_dataset", "domain_generalization")
TOGETHER = "base_and_new"
HALVES = ("base_to_new", TRANSDUCTIVE)  # protocols that test base and new classes apart
ALL_IMAGES = -1  # in place of a number of shots
BySeed = dict[int, float]  # {seed: accuracy in percent}


def shots_text(shots: int) -> str:
    """Return "4 shots"; "all images" where none are chosen."""
    return "all images" if shots < 1 else f"{shots} shot{'s' * (shots > 1)}"


@dataclass(frozen=True)
class Stat:
    """A mean in percent over seeds; `std` is None for a single seed."""

    mean: float
    std: float | None
    seeds: tuple[int, ...]

    @classmethod
    def of(cls, by_seed: Mapping[int, float], mean: float | None = None) -> Stat:
        """Summarize {seed: percent}; `mean` replaces the mean where it is defined otherwise."""
        values = list(by_seed.values())
        spread = stdev(values) if len(values) > 1 else None
        return cls(fmean(values) if mean is None else mean, spread, tuple(sorted(by_seed)))


@dataclass(frozen=True)
class Told(Stat):
    """Words in the place of a number."""

    text: str = ""

    @classmethod
    def words(cls, text: str) -> Told:
        """Return them as a cell."""
        return cls(0.0, None, (), text)


@dataclass
class Row:
    """The runs of one method with one configuration: the unit in which settings may not differ."""

    protocol: str
    source: str
    trainer: str
    config: str
    shots: int
    corruption: str = ""
    severity: int = 0
    cells: dict[tuple[str, str], BySeed] = field(default_factory=lambda: defaultdict(dict))
    ece: dict[tuple[str, str], BySeed] = field(default_factory=lambda: defaultdict(dict))
    settings: dict[str, Any] = field(default_factory=dict)
    identified: bool = False  # whether all its runs say what their numbers depend on
    backbone: str = ""  # its name or file, as far as the runs say
    weights: str = ""  # the SHA-256 of the backbone's file, else its name
    sees: tuple[str, ...] = ()  # what its runs saw, in the words of tuning/sees.py
    facts: dict[str, str] = field(default_factory=dict)  # what_ran.py
    seeded: bool = True  # False: its numbers depend on no seed, and one run has them
    tested: dict[tuple[str, str], str] = field(default_factory=dict)  # digests of what it was on
    disputed: set[str] = field(default_factory=set)  # data sets that other rows have otherwise

    @property
    def key(self) -> Key:
        """What its records and scores share with it."""
        return self.protocol, self.trainer, self.config, self.shots

    @property
    def name(self) -> str:
        """What messages call the row."""
        how = f", {self.corruption} {self.severity}" if self.corruption else ""
        return f"{self.protocol}: {self.trainer} {self.config}, {shots_text(self.shots)}{how}"

    @property
    def changes(self) -> dict[str, str]:
        """The settings that were changed on the command line."""
        return changed_settings(self.config)

    @property
    def has_papers_backbone(self) -> bool:
        """Whether the backbone is the paper's, as far as the runs say."""
        return published.is_papers_backbone(self.backbone or published.BACKBONE)

    @property
    def datasets(self) -> list[str]:
        """The row's data sets in the paper's order, the source left out."""
        table = self.protocol if self.protocol in TRANSFERS else "base_to_new"
        order = published.datasets(table)
        names = {dataset for dataset, _ in self.cells} - {self.source}
        return sorted(names, key=lambda n: (order.index(n) if n in order else len(order), n))

    def record(
        self,
        dataset: str,
        metrics: dict[str, Stat],
        paper: dict[str, float] | None = None,
        over: Sequence[str] = (),
        **further: Any,
    ) -> Record:
        """Return a line of this row; the paper's numbers are dropped where they don't compare.

        over: the data sets of an average.
        """
        shown = paper if paper and self.has_papers_backbone and not self.changes else {}
        named = {"source": self.source, "sees": self.sees, "facts": self.facts}
        named |= {"weights": self.weights, "over": tuple(over)}
        names = self.disputed & {dataset, *over}
        tested = sorted(digest for key, digest in self.tested.items() if key[0] in names)
        named |= {"seeded": self.seeded, "tested": tuple(tested), **further}
        return Record(*self.key, dataset, metrics, shown, **named)

    def papers(self, dataset: str) -> dict[str, float]:
        """Return the paper's numbers for a data set, or its average; {} if there are none."""
        if self.shots != published.SHOTS or self.protocol == TRANSDUCTIVE:
            return {}
        return published.lookup(self.protocol, trainer=self.trainer, dataset=dataset)

    def elsewhere(self, dataset: str) -> tuple[published.Elsewhere, ...]:
        """Return what the field published of the method in base to new, where it compares."""
        shots = ALL_IMAGES if self.protocol == TRANSDUCTIVE else published.SHOTS
        if self.shots != shots or not self.has_papers_backbone or self.changes:
            return ()
        return published.elsewhere_of(self.trainer, dataset)


@dataclass(frozen=True)
class Record:
    """One line: `metrics` are base, new, h or accuracy, and expected calibration errors.

    `published` has the paper's, by the same names.
    """

    protocol: str
    trainer: str
    config: str
    shots: int
    dataset: str
    metrics: dict[str, Stat]
    published: dict[str, float] = field(default_factory=dict)
    source: str = ""
    classes: str = ""  # base, new or all, where a record is of one of them
    corruption: str = ""  # of what was tested; "clean" and "mean" beside them
    severity: int = 0
    sees: tuple[str, ...] = ()
    elsewhere: tuple[published.Elsewhere, ...] = ()  # of the same method and data set
    over: tuple[str, ...] = ()  # the data sets of an average
    family: str = ""  # what a sweep's lines have in common: the config, other changed settings
    weights: str = ""
    facts: dict[str, str] = field(default_factory=dict)
    seeded: bool = True
    tested: tuple[str, ...] = ()  # digests of images and classes, where rows differ in them

    @property
    def key(self) -> Key:
        """That of its row."""
        return self.protocol, self.trainer, self.config, self.shots

    @property
    def like(self) -> tuple:
        """What it shares with records that it may be ranked among."""
        return self.sees, self.weights, self.shots, self.over, self.tested
