"""Which trainers a test goes through: every one, or every method and the twins that stand for all.

A twin adds DePT's head to a method. Where a property can only be lost in what DePT passes on, one
twin for each thing that it passes on is enough; so are two methods of those that DPC is around, one
for either tower. EVERY_TRAINER=1 in the environment runs them all.
"""

from __future__ import annotations

import os
from collections.abc import Iterable

import trainers
from dassl.engine import TRAINER_REGISTRY
from trainers.dept import DePT
from trainers.dpc import DPCMixin
from tuning.around import Around
from tuning.method import Method
from tuning.naming import bare_name, is_wrapped
from tuning.saved import Saved

# What no class says: the method, and why its twin is another case.
BESIDES = {"CoCoOp": "text features of each image: the head takes its rows from (B,C,D)"}

# DPC's twins that stand for all, and DePT's around one: it passes on what DPC alone asks for.
OF_DPC = ("DPC_CoOp", "DPC_MaPLe", "DePT_DPC_CoOp")

# What a method says for itself: DePT takes no other way by it.
OF_ITS_OWN = {"template_name", "trained_modules"}
PASSING = {*vars(Around), *vars(DePT)}


def every_trainer() -> list[str]:
    """The names of all registered trainers, a dropped file's too."""
    trainers.modules()
    return sorted(TRAINER_REGISTRY.registered_names())


def trains(name: str) -> bool:
    """Whether its method has parameters that steps change.

    A method that chooses its modules when it is built names none here, but has losses.
    """
    method = TRAINER_REGISTRY.get(name).method_class
    return bool(method.trained_modules or method.label_fit or is_wrapped(name))


def passed_on(method: type[Method]) -> set[str]:
    """What a method declares or defines otherwise than the base, and DePT passes on or reads."""
    names = {n for n in (*vars(Method), *vars(Saved)) if not n.startswith("_")} - OF_ITS_OWN
    names = {n for n in names if n in PASSING or not callable(getattr(Method, n))}
    return {n for n in names if getattr(method, n) != getattr(Method, n)} or {"nothing"}


def standing_for_all() -> list[str]:
    """Twins in the order of registration, each with something that none before it has."""
    every_trainer()
    found, seen = [], set()
    for name in TRAINER_REGISTRY.registered_names():
        twin = TRAINER_REGISTRY.get(name)
        if not is_wrapped(name) or not hasattr(twin, "method_class") or issubclass(twin, DPCMixin):
            continue
        own = passed_on(twin.method_class)
        if own - seen or bare_name(name) in BESIDES:
            found.append(name)
            seen |= own
    return found


def some_twins(names: Iterable[str]) -> list[str]:
    """Of some trainers all that aren't twins, and the twins that stand for all."""
    names = list(names)
    if os.environ.get("EVERY_TRAINER"):
        return names
    standing = {*standing_for_all(), *OF_DPC}
    return [name for name in names if not is_twin(name) or name in standing]


def is_twin(name: str) -> bool:
    """Whether it is DePT or DPC around another trainer."""
    trainer = TRAINER_REGISTRY.get(name) if name in TRAINER_REGISTRY else object
    return is_wrapped(name) or issubclass(trainer, DPCMixin)
