"""How far runs are, and how long they may still take. Nothing is read here, or written.

A run's time is its share of its place's: of three models trained side by side each took a third.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from pathlib import Path

from experiments.results.folders import Place, changed_settings, read_place
from experiments.watching.epochs import Epochs

DONE, RUNNING, WAITING, STOPPED = "complete", "under way", "to come", "stopped"
FAILED, LEFT = "failed", "left out"  # LEFT: what it needs has failed
STATES = (DONE, RUNNING, FAILED, LEFT, STOPPED, WAITING)
MANY = 3  # stages of a group, from which on they count as one kind: one per corruption, say


@dataclass(frozen=True)
class Run:
    """A run and how far it is. Times are in seconds since 1970."""

    name: str  # its folder, relative to the output folder
    chain: str
    state: str
    tests: bool = False  # a model that another run has trained
    accuracy: float | None = None
    seconds: float | None = None  # that it took, once it is complete
    since: float | None = None  # it is under way
    together: int = 1  # as many are, in its process
    before: int = 0  # epochs that it had when it began: it goes on from an interruption
    epochs: Epochs = Epochs()  # of one that trains
    reason: str = ""  # why it failed

    @property
    def takes(self) -> float | None:
        """Seconds that a whole one like it takes; None as long as nothing tells."""
        done, epochs = self.epochs.done - self.before, self.epochs
        if self.state == DONE and self.seconds is not None:
            share = 1 - self.before / epochs.of if epochs.of else 1.0
            return self.seconds / share if share > 0 else None
        if self.state == RUNNING and self.since is not None and epochs.each and done > 0:
            start = max(0.0, epochs.at - self.since - epochs.each * done)
            return (start + epochs.each * epochs.of) / self.together
        return None

    def left(self, each: float | None, now: float) -> float | None:
        """Seconds to go, by its own epochs, or where `each` is what one takes; None if unknown."""
        if self.state not in (RUNNING, WAITING):
            return 0.0
        if self.state == RUNNING and self.epochs.each and self.epochs.of:
            to_come = self.epochs.each * (self.epochs.of - self.epochs.done)
            return max(0.0, to_come - max(0.0, now - self.epochs.at)) / self.together
        if each is None:
            return None
        spent = (now - self.since) / self.together if self.since is not None else 0.0
        return max(0.0, each - spent)


@dataclass
class Kind:
    """Runs of a trainer, a setting and a stage: what takes about as long."""

    name: str
    runs: list[Run] = field(default_factory=list)

    def count(self, state: str) -> int:
        """How many are in a state."""
        return sum(run.state == state for run in self.runs)

    @property
    def accuracy(self) -> float | None:
        """The mean over those that have one, in percent."""
        found = [run.accuracy for run in self.runs if run.accuracy is not None]
        return sum(found) / len(found) if found else None

    @property
    def each(self) -> float | None:
        """Seconds that one takes, by those that are complete, or else by the epochs of others."""
        for state in (DONE, RUNNING):
            found = [t for run in self.runs if run.state == state and (t := run.takes) is not None]
            if found:
                return sum(found) / len(found)
        return None


@dataclass(frozen=True)
class Process:
    """One that carries out a plan. `ended`: when it said it had done, or None."""

    host: str
    process: int
    width: int
    beat: float
    ended: float | None
    alive: bool


@dataclass
class Step:
    """Runs under way in one process, side by side."""

    chain: str
    runs: list[Run]

    @property
    def tests(self) -> bool:
        """Whether they test models that are trained already."""
        return self.runs[0].tests

    @property
    def slowest(self) -> Run:
        """The one that is least far."""
        return min(self.runs, key=lambda run: run.epochs.done)

    @property
    def loss(self) -> float | None:
        """The mean of their latest epochs."""
        found = [run.epochs.loss for run in self.runs if run.epochs.loss is not None]
        return sum(found) / len(found) if found else None


@dataclass
class Standing:
    """A plan, or what lies in a folder without one, with its runs."""

    title: str
    command: str
    runs: list[Run]
    processes: list[Process]
    now: float
    at_once: int = 0  # chains; 0: as many as the processes say that are alive

    @property
    def width(self) -> int:
        """How many chains go at once."""
        return self.at_once or sum(p.width for p in self.processes if p.alive) or 1

    @property
    def goes_on(self) -> bool:
        """Whether something is under way, or somebody at it."""
        alive = any(process.alive for process in self.processes)
        return bool(self.at_once) or alive or self.count(RUNNING) > 0

    @cached_property
    def kinds(self) -> list[Kind]:
        """The runs by kind."""
        return kinds_of(self.runs)

    @property
    def failed(self) -> list[Run]:
        """Those that failed by themselves."""
        return [run for run in self.runs if run.state == FAILED]

    def count(self, state: str) -> int:
        """How many runs are in a state."""
        return sum(run.state == state for run in self.runs)

    @property
    def over(self) -> bool:
        """Whether nothing is to come any more."""
        return sum(map(self.count, (DONE, FAILED, LEFT))) == len(self.runs)

    @property
    def told(self) -> str:
        """Return "12 of 24 runs complete, 3 under way, 9 to come"."""
        counts = [(self.count(state), state) for state in STATES[1:]]
        rest = "".join(f", {number} {state}" for number, state in counts if number)
        return f"{self.count(DONE)} of {len(self.runs)} runs complete{rest}"

    def to_go(self, kind: Kind | None = None) -> tuple[float, bool]:
        """Seconds until all runs are complete, or a kind's, and whether of some nothing is known.

        Chains go side by side, the runs of one in turn.
        """
        if not self.goes_on:
            return 0.0, False
        by_chain: dict[str, float] = {}
        unknown = False
        for each in self.kinds if kind is None else [kind]:
            seconds = each.each
            for run in each.runs:
                left = run.left(seconds, self.now)
                unknown = unknown or left is None
                if left:
                    by_chain[run.chain] = by_chain.get(run.chain, 0.0) + left
        if not by_chain:
            return 0.0, unknown
        most, total = max(by_chain.values()), sum(by_chain.values())
        return max(most, total / min(self.width, len(by_chain))), unknown


def steps_under_way(runs: Iterable[Run]) -> list[Step]:
    """Return what is under way by process: the runs of a chain that began at one time."""
    steps: dict[tuple[str, bool, float | None], Step] = {}
    for run in runs:
        if run.state == RUNNING:
            step = steps.setdefault((run.chain, run.tests, run.since), Step(run.chain, []))
            step.runs.append(run)
    return list(steps.values())


def kinds_of(runs: Sequence[Run]) -> list[Kind]:
    """Group runs by trainer, changed settings, shots and stage, and name the groups.

    Settings and shots are said where they differ; of a group with many stages the stages count as
    one kind.
    """
    places = {run.name: _place(run.name) for run in runs}
    known = [place for place in places.values() if place]
    stages: dict[str, set[str]] = {}
    for place in known:
        stages.setdefault(place.group, set()).add(place.stage)
    everywhere = [stage for names in stages.values() for stage in names]
    several = len({place.shots for place in known}) > 1
    configs = {place.config for place in known}
    settings = {config: set(changed_settings(config).items()) for config in configs}
    shared = set.intersection(*settings.values()) if settings else set()
    kinds: dict[str, Kind] = {}
    for run in runs:
        name = "other runs"
        if place := places[run.name]:
            stage = place.stage
            if len(stages[place.group]) > MANY:
                stage = place.group
            elif everywhere.count(stage) > 1:
                stage = f"{place.group}/{stage}"
            own = sorted(settings[place.config] - shared)
            changes = [f"{key.rpartition('.')[2]}={value}" for key, value in own]
            shots = [f"{place.shots} shots"] if several else []
            name = " ".join([place.trainer, *changes, *shots, stage])
        kinds.setdefault(name, Kind(name)).runs.append(run)
    return list(kinds.values())


@lru_cache(1 << 15)  # a view asks again and again
def _place(name: str) -> Place | None:
    return read_place(Path("/", name))
