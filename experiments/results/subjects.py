"""What points and lines of pictures are about, and how each is drawn in all of them."""

from __future__ import annotations

from dataclasses import dataclass

from experiments.results.pictures import COLORS, MARKERS
from experiments.results.scores import Score
from experiments.results.summary import Record, Row, Summary
from experiments.results.tables import method_order
from tuning.naming import bare_name, is_wrapped


@dataclass(frozen=True)
class Subject:
    """What a point or a line is about: a trainer, with the settings changed or what is drawn."""

    trainer: str
    changes: str = ""

    @property
    def wrapped(self) -> bool:
        """Whether it is DePT around another method."""
        return is_wrapped(self.trainer)

    @property
    def bare(self) -> Subject:
        """The method that DePT is around; itself if there is no DePT."""
        return Subject(bare_name(self.trainer), self.changes)

    @property
    def label(self) -> str:
        """Its name in a legend; matplotlib hides labels with a _ in front."""
        name = f"{self.trainer} {self.changes}".strip()
        return f" {name}" if name.startswith("_") else name


@dataclass(frozen=True)
class Look:
    """How a method is drawn; a method and its DePT_ share it, and are told by filled and dashed."""

    color: str
    marker: str = "o"


def subject(record: Record | Row | Score) -> Subject:
    """Return what a record, row or score is about."""
    return Subject(record.trainer, record.config.partition("@")[2])


def looks(summary: Summary) -> dict[Subject, Look]:
    """Return a look per method, the same in every plot."""
    methods = dict.fromkeys(subject(row) for row in sorted(summary.rows, key=method_order))
    families = list(dict.fromkeys(method.bare for method in methods))
    found = {}
    for method in methods:
        round_, place = divmod(families.index(method.bare), len(COLORS))
        found[method] = Look(COLORS[place], MARKERS[round_ % len(MARKERS)])
    return found
