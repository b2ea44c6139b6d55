"""What points and lines of pictures are about, and how each is drawn in all of them."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field

from experiments.results.pictures import COLORS, MARKERS
from experiments.results.records import Record, Row, shots_text
from experiments.results.scores import Score
from experiments.results.summary import Summary
from experiments.results.tables import method_order
from experiments.results.twins import bare_keys
from tuning.naming import is_wrapped


@dataclass(frozen=True)
class Subject:
    """What a point or a line is about: a trainer under one config, or what is drawn of it."""

    trainer: str
    config: str = ""  # with its changed settings
    label: str = field(default="", compare=False)  # in a legend

    @property
    def wrapped(self) -> bool:
        """Whether it is DePT around another method."""
        return is_wrapped(self.trainer)


@dataclass(frozen=True)
class Look:
    """How a method is drawn; a method and its DePT_ share it, and are told by filled and dashed."""

    color: str
    marker: str = "o"


class Subjects:
    """The subjects of a summary.

    looks: how each is drawn, the same in every plot.
    bare: {one with DePT: the same without it}.
    """

    def __init__(self, summary: Summary) -> None:
        """A config is named where a trainer has several, its changes unless all rows have them."""
        changes = {row.config.partition("@")[2] for row in summary.rows}
        self._shared = changes.pop() if len(changes) == 1 else None
        self._files: dict[str, set[str]] = defaultdict(set)
        for row in summary.rows:
            self._files[row.trainer].add(row.config.partition("@")[0])
        of = {row.key: self(row) for row in sorted(summary.rows, key=method_order)}
        self.bare = {of[key]: of[other] for key, other in bare_keys(summary.rows).items()}
        families = list(dict.fromkeys(self.bare.get(one, one) for one in of.values()))
        self.looks = {}
        for one in of.values():
            round_, place = divmod(families.index(self.bare.get(one, one)), len(COLORS))
            self.looks[one] = Look(COLORS[place], MARKERS[round_ % len(MARKERS)])

    def __call__(self, what: Record | Row | Score) -> Subject:
        """Return what a record, row or score is about."""
        file, _, changes = what.config.partition("@")
        several = len(self._files[what.trainer]) > 1
        own = "" if changes == self._shared else changes
        named = " ".join(filter(None, [what.trainer, file if several else "", own]))
        # matplotlib hides labels with a _ in front.
        return Subject(what.trainer, what.config, f" {named}" if named.startswith("_") else named)


# --- Numbers of shots ---------------------------------------------------------------------------


def shots_of(summary: Summary) -> list[int]:
    """Return the numbers of shots that there are base-to-new pictures of, the most first."""
    shots = {r.shots for r in summary.usual("base_to_new") if "h" in r.metrics}
    return sorted(shots or {s.shots for s in summary.scores}, reverse=True)


def told_shots(summary: Summary, shots: int | None) -> str:
    """Return ", 4 shots" for a title, where there are several numbers of them."""
    there = shots_of(summary)
    if len(there) < 2:
        return ""
    return f", {shots_text(there[0] if shots is None else shots)}"


def chosen_shots(summary: Summary, shots: int | None) -> int:
    """Return `shots`, or the most there are."""
    return max(shots_of(summary), default=0) if shots is None else shots
