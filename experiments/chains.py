"""Runs of train.py, and chains of them: what goes after what, and what can be trained as one."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Job:
    """One run of train.py.

    `folder` gets its result.json;
    `model` is the folder of the run whose model it tests, if it doesn't train its own; `teacher`
    that of the run it learns from, if there is one; runs of one `kin` differ only in what runs that
    are trained side by side may differ in.
    """

    folder: Path
    arguments: tuple[str, ...]
    model: Path | None = None
    kin: str = ""
    teacher: Path | None = None

    @property
    def needs(self) -> Path | None:
        """The folder of the run that must be there before this one."""
        return self.model or self.teacher

    @property
    def command(self) -> str:
        """The command as a person would type it."""
        return shlex.join(["python", "train.py", *self.arguments])


@dataclass(frozen=True)
class Chain:
    """Runs of one or several models, each after the one that it needs."""

    name: str
    jobs: tuple[Job, ...]

    @property
    def steps(self) -> tuple[tuple[Job, ...], ...]:
        """The runs that need none, then those that need these, and so on: each go in one process.

        So those that train stand before those that test, and teachers before their students; what
        trains and what tests are apart.
        """
        places: dict[Path, tuple[int, bool]] = {}
        for job in self.jobs:
            depth = 0 if job.needs is None else places.get(job.needs, (0, False))[0] + 1
            places[job.folder] = (depth, job.model is not None)
        steps = (
            [j for j in self.jobs if places[j.folder] == p] for p in sorted({*places.values()})
        )
        return tuple(tuple(step) for step in steps)


def without_repetitions(chains: Sequence[Chain]) -> list[Chain]:
    """Leave out runs that a chain has twice, and chains of runs that stand before them."""
    kept: list[Chain] = []
    seen: set[Path] = set()
    for chain in chains:
        jobs = {job.folder: job for job in chain.jobs}
        if not jobs.keys() <= seen:
            kept.append(Chain(chain.name, tuple(jobs.values())))
        seen |= jobs.keys()
    return kept


def side_by_side(chains: Sequence[Chain], limit: int) -> list[Chain]:
    """Join chains whose models can be trained as one, at most `limit` models in each."""
    groups: dict[tuple[str, ...], list[list[Chain]]] = {}
    joined = []
    for i, chain in enumerate(chains):
        kin = tuple(job.kin or str(i) for job in chain.jobs)
        groups.setdefault(kin, [])
        if not groups[kin] or len(groups[kin][-1]) == limit:
            groups[kin].append([])
            joined.append(groups[kin][-1])
        groups[kin][-1].append(chain)
    return [
        Chain(_common_name([chain.name for chain in group]), tuple(dict.fromkeys(_by_place(group))))
        for group in joined
    ]


def _by_place(chains: Sequence[Chain]) -> list[Job]:
    """The first runs of all, then the second ones, and so on."""
    return [job for jobs in zip(*(chain.jobs for chain in chains), strict=True) for job in jobs]


def _common_name(names: Sequence[str]) -> str:
    """For "CoOp dtd seed 1" and "CoOp dtd seed 2": "CoOp dtd seed 1|2"."""
    columns = zip(*(name.split(" ") for name in names), strict=True)
    return " ".join("|".join(dict.fromkeys(words)) for words in columns)
