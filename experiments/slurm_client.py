"""Slurm's own programs, asked. https://slurm.schedmd.com/man_index.html says what they answer."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

# The states in which a job is over: https://slurm.schedmd.com/job_state_codes.html
ENDED = frozenset(
    {
        *("BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "NODE_FAIL"),
        *("OUT_OF_MEMORY", "PREEMPTED", "REVOKED", "TIMEOUT"),
    }
)
UNKNOWN = "no longer known to Slurm"
PATIENCE = 120.0  # seconds a program has to answer
ARRAY = 1001  # tasks of an array, where Slurm doesn't say (its default)
Place = tuple[str, int]  # a task: its job, its number in the array


class NoAnswer(Exception):
    """Slurm doesn't answer, or not to this. Its words."""


@dataclass(frozen=True)
class State:
    """How a task is, in Slurm's words; `reason`: why it waits."""

    name: str
    reason: str = ""

    @property
    def ended(self) -> bool:
        """Whether it is over."""
        return self.name in ENDED or self.name == UNKNOWN


def is_here() -> bool:
    """Whether jobs can be submitted from here."""
    return shutil.which("sbatch") is not None


def submit(options: Sequence[str], script: Path) -> str:
    """Submit a script; return its job's number. Raises NoAnswer; then it may be there all the same.

    https://slurm.schedmd.com/sbatch.html
    """
    told = _ask("sbatch", "--parsable", *options, str(script))
    job = told.strip().partition(";")[0]  # then the cluster's name, where there are several
    if not job.isdecimal():
        raise NoAnswer(f"sbatch said {told.strip()!r}")
    return job


def job_named(name: str) -> str:
    """The number of the job of this name that Slurm still knows; "" if there is none."""
    told = _ask("squeue", "--noheader", "--states=all", f"--name={name}", "--format=%F")
    return (told.split() or [""])[0]


def states(tasks: Collection[Place]) -> dict[Place, State]:
    """How tasks are. Raises NoAnswer if that can't be known just now."""
    jobs = ",".join(sorted({job for job, _ in tasks}))
    if not jobs:
        return {}
    words = ("--array", "--noheader", "--states=all", f"--jobs={jobs}", "--format=%i|%T|%r")
    try:
        lines = _ask("squeue", *words).splitlines()
    except NoAnswer as error:
        if "Invalid job id" not in str(error):
            raise
        lines = []
    known = {}
    for line in lines:
        place, state, reason = (*line.strip().split("|", 2), "", "")[:3]
        known[place] = State(state, reason)
    found = {task: state for task in tasks if (state := _of(task, known))}
    if forgotten := [task for task in tasks if task not in found]:
        past = _past({job for job, _ in forgotten})
        for task in forgotten:
            state = _of(task, past)
            found[task] = state if state and state.ended else State(UNKNOWN)
    return found


def _of(task: Place, known: dict[str, State]) -> State | None:
    """Its own line, or its job's: tasks that never were apart have one together."""
    job, index = task
    return known.get(f"{job}_{index}") or known.get(job)


def _past(jobs: Collection[str]) -> dict[str, State]:
    """What Slurm's accounting says, where there is one."""
    words = ("--noheader", "--allocations", "--parsable2", f"--jobs={','.join(sorted(jobs))}")
    try:
        lines = _ask("sacct", *words, "--format=JobID,State").splitlines()
    except NoAnswer:
        return {}
    found = {}
    for line in lines:
        place, _, state = line.strip().partition("|")
        found[place.partition("_[")[0]] = State((state.split() or [""])[0])
    return found


def has_gpus(partition: str) -> bool | None:
    """Whether a partition, or the usual one, has a node with GPUs; None if that isn't known."""
    chosen = [f"--partition={partition}"] if partition else []
    try:
        lines = _ask("sinfo", "--noheader", *chosen, "--format=%P|%G").splitlines()
    except NoAnswer:
        return None
    if not partition:  # the usual one is marked by a star
        lines = [line for line in lines if line.partition("|")[0].strip().endswith("*")]
    resources = [line.partition("|")[2] for line in lines]
    found = any(re.match(r"\s*gpu(:|$)", one) for each in resources for one in each.split(","))
    return found if resources else None


def array_limit() -> int:
    """How many tasks an array may have."""
    try:
        found = re.search(r"MaxArraySize\s*=\s*(\d+)", _ask("scontrol", "show", "config"))
    except NoAnswer:
        found = None
    return int(found[1]) if found and int(found[1]) else ARRAY


def _ask(*words: str) -> str:
    """What a program prints. Raises NoAnswer."""
    try:
        done = subprocess.run(
            words,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="backslashreplace",
            timeout=PATIENCE,
        )
    except OSError as error:
        raise NoAnswer(f"{words[0]}: {error.strerror}") from None
    except subprocess.TimeoutExpired:
        raise NoAnswer(f"{words[0]} gave no answer in {PATIENCE:.0f} s") from None
    if done.returncode:
        said = [line.strip() for line in done.stderr.splitlines() if line.strip()]
        raise NoAnswer(said[-1] if said else f"{words[0]} ended with status {done.returncode}")
    return done.stdout
