"""The paper's numbers, and others' of the field, to be printed beside ours.

See experiments/published/README.md.
"""

from __future__ import annotations

import csv
from dataclasses import dataclass
from functools import cache
from pathlib import Path

FOLDER = Path(__file__).resolve().parents[1] / "published"
SHOTS = 16  # of every table but few_shot
BACKBONE = "ViT-B/16"
SWEPT = "CoOp"  # what the λ and ablation tables wrap
FIELD = "field_base_to_new"


@dataclass(frozen=True)
class Elsewhere:
    """Base, new and h of a method on a data set, or on average, in percent, published elsewhere.

    source: the table or figure. rerun: whether others than its authors ran it. sees: words of
    tuning/sees.py.
    """

    method: str
    dataset: str
    numbers: dict[str, float]
    source: str
    rerun: bool
    sees: tuple[str, ...] = ()

    @property
    def what(self) -> str:
        """How it is called: "published", or "re-run"."""
        return "re-run" if self.rerun else "published"


@cache
def _table(name: str) -> list[dict[str, str]]:
    with open(FOLDER / f"{name}.csv", encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


@cache
def datasets(protocol: str) -> tuple[str, ...]:
    """Return the data sets of a protocol's published table, in the paper's order."""
    names = dict.fromkeys(row["dataset"] for row in _table(protocol))
    return tuple(name for name in names if name != "average")


@cache
def methods() -> tuple[str, ...]:
    """Return the methods in the paper's order."""
    return tuple(dict.fromkeys(row["trainer"] for row in _table("base_to_new")))


def harmonic_mean(base: float, new: float) -> float:
    """Return H = 2BN / (B + N); 0 if both are 0."""
    return 2 * base * new / (base + new) if base + new else 0.0


def _numbers(row: dict[str, str]) -> dict[str, float]:
    numbers = {key: float(row[key]) for key in ("base", "new", "h", "accuracy") if row.get(key)}
    if "base" in numbers:
        numbers.setdefault("h", harmonic_mean(numbers["base"], numbers["new"]))
    return numbers


def lookup(table: str, **keys: str | int | float) -> dict[str, float]:
    """Return {metric: percent} of the row with these column values; {} if there is none.

    `lookup("base_to_new", trainer="CoOp", dataset="dtd")`. Numbers compare as numbers.
    """
    for row in _table(table):
        if all(_same(row[column], value) for column, value in keys.items()):
            return _numbers(row)
    return {}


def _same(text: str, value: str | int | float) -> bool:
    return text == value if isinstance(value, str) else float(text) == float(value)


def is_papers_backbone(name: str) -> bool:
    """Whether a backbone's name, or its checkpoint file's path, is the paper's."""
    plain = "".join(filter(str.isalnum, name)).lower()
    return "".join(filter(str.isalnum, BACKBONE)).lower() in plain


def average(trainer: str, shots: int) -> dict[str, float]:
    """Return the base-to-new average over the paper's eleven data sets; {} if it has none."""
    if shots == SHOTS:
        return lookup("base_to_new", trainer=trainer, dataset="average")
    return lookup("few_shot", trainer=trainer, shots=shots)


@cache
def elsewhere() -> tuple[Elsewhere, ...]:
    """Return all base-to-new numbers of the field, in the file's order."""
    return tuple(
        Elsewhere(
            row["method"],
            row["dataset"],
            _numbers(row),
            row["source"],
            row["rerun"] == "yes",
            tuple(row["sees"].split()),
        )
        for row in _table(FIELD)
    )


def elsewhere_of(method: str, dataset: str) -> tuple[Elsewhere, ...]:
    """Return the field's numbers of a method on a data set or "average"."""
    return tuple(e for e in elsewhere() if (e.method, e.dataset) == (method, dataset))
