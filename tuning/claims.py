"""What a method claims, and the runs that would show it: a trainer's attribute `claim`.

Declarations alone; benchmarks/claims.py makes the runs and the tables.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from dassl.engine import TRAINER_REGISTRY

from .naming import is_wrapped

# What may be measured of a claim's runs beside base, new and H.
MEASURES = {
    "cost": "trained parameters and time of a step",
    "starts": "spread over starts, and epochs to 95 % of what is learned",
    "corruptions": "accuracy under named corruptions",
}


@dataclass(frozen=True)
class Row:
    """A row of a table: runs that differ in their seed.

    options: config keys and values, as on a command line. library: whether each run starts from one
    of the same trainer over other data sets, with its config `…_library` (MODEL.INIT_WEIGHTS).
    """

    name: str
    trainer: str
    options: Mapping[str, str] = field(default_factory=dict)
    library: bool = False


@dataclass(frozen=True)
class Claim:
    """A method's claim on CLIP.

    says: the claim, a sentence. rows: the method's own. controls: what it must beat or equal, in
    the same table; differences are to the first. measures: of `MEASURES`.
    """

    says: str
    rows: tuple[Row, ...]
    controls: tuple[Row, ...]
    measures: tuple[str, ...] = ()


def declared() -> dict[str, Claim]:
    """The claims of the trainers that are registered, by their names; a twin has none."""
    found = {}
    for name in TRAINER_REGISTRY.registered_names():
        claim = vars(TRAINER_REGISTRY.get(name)).get("claim")
        if claim is not None and not is_wrapped(name):
            found[name] = claim
    return found
