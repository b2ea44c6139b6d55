"""Wait for Slurm jobs: what becomes of their runs, why they don't start, how they ended."""

from __future__ import annotations

import time
from collections import Counter
from pathlib import Path

from dassl.utils import UserError
from experiments import slurm_client as client
from experiments import slurm_records as records
from experiments.chains import Chain, Job
from experiments.runner import USER_ERROR, Outcome, Report, is_complete, outcome_of
from experiments.slurm_client import NoAnswer, Place, State
from experiments.slurm_records import Task, absolute
from experiments.watching.lines import say

FIRST, LAST = 1.0, 15.0  # seconds between two looks at what is waited for
TELL = 60.0  # seconds between two lines on how many tasks wait
# Why a task waits that will have its turn: nothing to tell.
ORDINARY = frozenset(
    {
        *("None", "Priority", "Resources", "Dependency", "BeginTime", "JobArrayTaskLimit"),
        *("Cleaning", "Licenses"),
    }
)
MENDED_BY = {  # https://slurm.schedmd.com/job_reason_codes.html
    "PartitionTimeLimit": "--time is above what the partition allows",
    "QOSMaxWallDurationPerJobLimit": "--time is above what the QOS allows",
    "AssocMaxWallDurationPerJobLimit": "--time is above what the account allows",
    "PartitionConfig": "the partition has no such nodes: --cpus-per-job, --memory-gb, --time",
    "PartitionNodeLimit": "the partition's limits on nodes or time",
    "BadConstraints": "no node fits --constraint and the rest",
    "ReqNodeNotAvail": "the nodes that would do are down, drained or reserved",
    "InvalidQOS": "--qos",
    "InvalidAccount": "--account",
    "JobHeldUser": "scontrol release lets it go",
    "JobHeldAdmin": "held by Slurm or its administrators",
    "DependencyNeverSatisfied": "what it waits for can't come",
}


class Waiting:
    """Looks at tasks from time to time.

    Args:
        queued: the chains that are waited for, with the task of each run.
    """

    def __init__(self, queued: dict[Chain, dict[Path, Task]]) -> None:
        self._queued = dict(queued)
        self._seen: set[Place] = set()  # those that had ended at the look before
        self._told: set[tuple[str, str]] = set()
        self._counts: tuple[float, Counter[str]] = (-TELL, Counter())
        self._silent = False

    def until_all_is_done(self, report: Report) -> None:
        """Look until there is nothing left to look for."""
        pause = FIRST
        while self._queued:
            for chain, outcomes in self.look():
                report(chain, outcomes)
            if self._queued:
                time.sleep(pause)
                pause = min(LAST, 1.5 * pause)

    def look(self) -> list[tuple[Chain, list[Outcome]]]:
        """What is done by now, told once. That Slurm doesn't answer changes nothing."""
        tasks = {task.place: task for each in self._queued.values() for task in each.values()}
        try:
            found = client.states(tasks)
            self._silent = False
        except NoAnswer as error:
            if not self._silent:
                say(f"Slurm gives no answer ({error}): asking again")
            self._silent, found = True, {}
        self._tell(found)
        # A file system may show what a task wrote a moment after its end.
        over = {place: state for place, state in found.items() if place in self._seen}
        self._seen = {place for place, state in found.items() if state.ended}
        over = {place: state for place, state in over.items() if state.ended}
        told = {task: task.recorded() for task in set(tasks.values())}
        done = []
        for chain, each in list(self._queued.items()):
            outcomes = [_became(job, each, told, over) for job in chain.jobs]
            if None not in outcomes:
                done.append((chain, outcomes))
                del self._queued[chain]
        return done

    def _tell(self, found: dict[Place, State]) -> None:
        """How many tasks wait and run, and what a task waits for that isn't its turn."""
        reasons = Counter(
            (job, state.reason)
            for (job, _), state in found.items()
            if state.name == "PENDING" and _kind(state.reason) not in ORDINARY
        )
        for (job, reason), number in reasons.items():
            if (job, reason) not in self._told:
                self._told.add((job, reason))
                what = f"{number} task{'s wait' if number > 1 else ' waits'}"
                hint = f" ({MENDED_BY[_kind(reason)]})" if _kind(reason) in MENDED_BY else ""
                say(f"Slurm job {job}: {what}, {reason}{hint}; scancel {job} takes it back")
        counts = Counter(state.name.lower() for state in found.values() if not state.ended)
        when, before = self._counts
        if counts and counts != before and time.monotonic() - when >= TELL:
            self._counts = time.monotonic(), counts
            say("Slurm tasks: " + ", ".join(f"{n} {name}" for name, n in counts.items()))


def _kind(reason: str) -> str:
    return reason.partition(",")[0]


def _became(
    job: Job,
    tasks: dict[Path, Task],
    told: dict[Task, dict[Path, dict]],
    over: dict[Place, State],
) -> Outcome | None:
    """What became of a run; None as long as that isn't known."""
    folder = absolute(job.folder)
    task = tasks.get(folder)
    if task is None:  # it was complete
        return outcome_of(job, "skipped")
    if folder in told[task]:
        return records.outcome(job, told[task][folder])
    if task.place not in over:
        return None
    try:
        if is_complete(job):
            return outcome_of(job, "done")
    except UserError as error:
        return Outcome(job, "failed", reason=str(error), status=USER_ERROR)
    return Outcome(job, "failed", reason=_end_of(task, over[task.place]), status=1)


def _end_of(task: Task, state: State) -> str:
    return f"Slurm task {task.job}_{task.index}: {state.name} ({task.why()}); log: {task.log}"
