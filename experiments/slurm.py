"""Carry out a plan as an array of Slurm jobs: submit what is missing, once, and wait for it.

What was submitted stands in OUTPUT/slurm (slurm_records.py): the same command finds its jobs again.
Whoever submits holds a lock meanwhile: two at once submit nothing twice.
"""

from __future__ import annotations

import shlex
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dassl.utils import Terminated, UserError, hold_file
from experiments import slurm_client as client
from experiments import slurm_records as records
from experiments.chains import Chain
from experiments.processes import RunnerSettings
from experiments.runner import (
    LOST,
    USER_ERROR,
    Outcome,
    Report,
    is_complete,
    left_out,
    outcome_of,
)
from experiments.slurm_client import NoAnswer, State
from experiments.slurm_records import Submission, Task, absolute
from experiments.slurm_waiting import Waiting
from experiments.watching.lines import say

ATTEMPTS, AGAIN = 5, 3.0  # how often Slurm is asked before anything is submitted, seconds between


@dataclass(frozen=True)
class Request:
    """What jobs ask of Slurm. `gpus` None: one each where the partition has any."""

    partition: str = ""
    account: str = ""
    qos: str = ""
    constraint: str = ""
    exclude: str = ""
    setup: tuple[str, ...] = ()  # lines of the user's own shell, before the program
    minutes: int = 24 * 60
    cpus: int = 8
    memory_gb: int = 0
    gpus: int | None = None
    per_task: int = 1  # chains
    at_once: int = 0  # tasks; 0: as many as Slurm lets
    per_gpu: int = 1
    jobs: int = 0  # runs at once in a task; 0: one per GPU place, or one

    def options(self, gpus: int) -> list[str]:
        """As sbatch takes them."""
        wanted = {
            "partition": self.partition,
            "account": self.account,
            "qos": self.qos,
            "constraint": self.constraint,
            "exclude": self.exclude,
            "time": self.minutes,
            "nodes": 1,
            "ntasks": 1,
            "cpus-per-task": self.cpus,
            "mem": f"{self.memory_gb}G" if self.memory_gb else "",
            "gres": f"gpu:{gpus}" if gpus else "",
        }
        return [f"--{name}={value}" for name, value in wanted.items() if value]


@dataclass
class SlurmPlan:
    """A plan as Slurm has it.

    `settled`: chains that are complete, or can't be done; `queued`: those whose runs Slurm has
    already, with the task of each; `behind`: what is submitted, by the jobs it has to wait for.
    """

    folder: Path
    request: Request
    settled: list[tuple[Chain, list[Outcome]]] = field(default_factory=list)
    queued: dict[Chain, dict[Path, Task]] = field(default_factory=dict)
    behind: dict[frozenset[str], list[Chain]] = field(default_factory=dict)
    lost: list[tuple[Task, State]] = field(default_factory=list)
    per_task: int = 1
    gpus: int = 0

    @property
    def chains(self) -> list[Chain]:
        """All, as they are reported."""
        new = [chain for chains in self.behind.values() for chain in chains]
        return [*(chain for chain, _ in self.settled), *self.queued, *new]

    @property
    def jobs(self) -> list[str]:
        """The numbers of the jobs that are waited for."""
        return sorted({t.job for tasks in self.queued.values() for t in tasks.values()}, key=int)

    @property
    def width(self) -> int:
        """How many chains go at once, as far as one can know."""
        queued = {task.place for tasks in self.queued.values() for task in tasks.values()}
        return self.request.at_once or max(1, len(queued))

    def tasks_of(self, chains: Sequence[Chain]) -> list[Sequence[Chain]]:
        """What each task does."""
        return [chains[i : i + self.per_task] for i in range(0, len(chains), self.per_task)]

    def options(self, submission: Path, name: str, tasks: int, after: frozenset[str]) -> list[str]:
        """What sbatch is told beside the script."""
        at_once = f"%{self.request.at_once}" if self.request.at_once else ""
        logs = str(absolute(submission)).replace("%", "%%") + "/%a.log"
        found = [f"--job-name={name}", f"--array=0-{tasks - 1}{at_once}", f"--output={logs}"]
        found += ["--open-mode=append", "--requeue", *self.request.options(self.gpus)]
        return [*found, f"--dependency=afterany:{':'.join(sorted(after))}"] if after else found

    def how(self, settings: RunnerSettings) -> dict[str, Any]:
        """How a task's runs go, as its file says it."""
        return {
            "launcher": sys.executable,
            "python": settings.python,
            "attempts": settings.attempts,
            "show": settings.show,
            "warm": list(settings.warm),
            "plan": settings.plan and str(absolute(settings.plan)),
            "gpus": self.gpus,
            "per_gpu": self.request.per_gpu,
            "jobs": self.request.jobs,
        }

    def describe(self) -> list[str]:
        """How much there is to do, and how much of that is under way."""
        everything = self.chains
        runs = sum(len(chain.jobs) for chain in everything)
        new = sum(map(len, self.behind.values()))
        tasks = sum(len(self.tasks_of(chains)) for chains in self.behind.values())
        at_once = min(self.request.at_once or tasks, tasks)
        lines = [
            f"{_several(runs, 'run')} in {_several(len(everything), 'chain')}: "
            f"{len(self.settled)} complete or refused, {len(self.queued)} queued in Slurm or "
            f"running there, {new or 'nothing'} to submit"
        ]
        if new:
            gpus = _several(self.gpus, "GPU") if self.gpus else "no GPU"
            lines.append(
                f"{_several(new, 'chain')}, {self.per_task} in a task: {_several(tasks, 'task')}, "
                f"{at_once} at once at most; each has {gpus}, "
                f"{_several(self.request.cpus, 'core')}, {_several(self.request.minutes, 'minute')}"
            )
        return lines

    def show(self, settings: RunnerSettings) -> None:
        """Print what would be submitted: the commands, the scripts, the tasks."""
        for line in self.describe():
            say(line)
        folder = records.next_folder(self.folder)
        for after, chains in self.behind.items():
            tasks = self.tasks_of(chains)
            words = self.options(folder, "dept-…", len(tasks), after)
            words = ["sbatch", "--parsable", *words, str(folder / "job.sh")]
            print(f"\n{shlex.join(words)}")
            print(f"\n# {folder / 'job.sh'}")
            print(records.script(folder, self.how(settings), self.request.setup))
            for i, task in enumerate(tasks):
                print(*(f"# task {i}: {chain.name}" for chain in task), sep="\n")
            folder = folder.with_name(f"{int(folder.name) + 1:04}")

    def tell_lost(self) -> None:
        """Print which tasks have left runs of the plan without a result."""
        groups: dict[tuple[str, str], list[Task]] = defaultdict(list)
        for task, state in self.lost:
            groups[task.job, state.name].append(task)
        for (job, state), tasks in groups.items():
            first = min(tasks, key=lambda task: task.index)
            several = len(tasks) > 1
            say(
                f"Slurm job {job}: {len(tasks)} task{'s' * several} left runs without a result "
                f"({state}), submitted again now; {'the first ' * several}log: {first.log}"
            )
            say(f"  {first.why()}")

    def submit(self, settings: RunnerSettings) -> None:
        """Give Slurm what it hasn't. Raises UserError if it doesn't take it."""
        self.tell_lost()
        for line in self.describe():
            say(line)
        for after, chains in list(self.behind.items()):
            tasks = self.tasks_of(chains)
            folder = records.next_folder(self.folder)
            new = records.prepare(folder, tasks, self.how(settings), self.request.setup)
            words = self.options(folder, new.name, len(tasks), after)
            try:
                job = client.submit(words, folder / "job.sh")
            except NoAnswer as error:  # which may have come to Slurm all the same
                job = _patiently(lambda name=new.name: client.job_named(name))
                if not job:
                    raise UserError(f"Slurm did not take the jobs: {error}") from None
            new = new.note(job)
            logs = f"{folder}/N.log" if len(tasks) > 1 else folder / "0.log"
            say(f"submitted Slurm job {job}, tasks 0 to {len(tasks) - 1}; logs: {logs}")
            del self.behind[after]
            for chains, task in zip(tasks, new.tasks, strict=True):
                self.queued |= {
                    chain: {absolute(job.folder): task for job in chain.jobs} for chain in chains
                }

    def wait(self, report: Report) -> None:
        """Report each chain once it is done, or its task is over."""
        for chain, outcomes in self.settled:
            report(chain, outcomes)
        try:
            Waiting(self.queued).until_all_is_done(report)
        except (KeyboardInterrupt, Terminated):
            say(self.goes_on())
            raise

    def leave(self) -> None:
        """Say what Slurm goes on with, and what of it doesn't start."""
        if self.queued:
            time.sleep(AGAIN)  # until Slurm has had a look
            Waiting(self.queued).look()
            say(self.goes_on())

    def goes_on(self) -> str:
        """What to know about jobs that nobody waits for."""
        jobs = " ".join(self.jobs)
        return f"Slurm goes on with {jobs}; the same command finds it again, scancel {jobs} ends it"


def _several(number: int, what: str) -> str:
    return f"{number} {what}{'s' * (number != 1)}"


@contextmanager
def planned(
    chains: Sequence[Chain],
    request: Request,
    folder: Path,
    join: Callable[[Sequence[Chain]], list[Chain]],
    only_look: bool = False,
) -> Iterator[SlurmPlan]:
    """Compare a plan with what is complete and what Slurm has; nobody else submits meanwhile.

    Args:
        chains: the plan's.
        request: what is asked of Slurm.
        folder: OUTPUT/slurm.
        join: joins those of the chains to submit whose models can be trained side by side.
        only_look: nothing is written; nor need Slurm be here.

    Raises:
        UserError: Slurm isn't here, or doesn't answer.
    """
    here = client.is_here()
    if not here and not only_look:
        raise UserError("--cluster slurm: there is no sbatch on this machine")
    if "\\" in str(absolute(folder)):
        raise UserError(f"Slurm writes no logs to {folder}: there is a backslash in its name")
    if only_look:
        yield _compare(chains, request, folder, join, here)
        return
    waited = []

    def wait() -> bool:
        if not waited:
            say(f"waiting for another process that submits from {folder}")
            waited.append(True)
        return True

    with hold_file(folder / ".lock", wait):
        yield _compare(chains, request, folder, join, here)


def _compare(
    chains: Sequence[Chain],
    request: Request,
    folder: Path,
    join: Callable[[Sequence[Chain]], list[Chain]],
    here: bool,
) -> SlurmPlan:
    plan = SlurmPlan(folder, request)
    latest: dict[Path, Task] = {}
    for submission in _known(folder) if here else ():
        latest |= {run: task for task in submission.tasks for run in task.runs}
    missing = _missing(chains, plan)
    alive, plan.lost = _alive(
        {run: latest[run] for jobs in missing.values() for run in jobs if run in latest}
    )
    new: dict[frozenset[str], list[Chain]] = defaultdict(list)
    for chain, runs in _missing(list(missing), plan).items():  # less, if tasks have ended meanwhile
        tasks = {run: alive[run] for run in runs if run in alive}
        if len(tasks) == len(runs):
            plan.queued[chain] = tasks
        else:
            new[frozenset(task.job for task in tasks.values())].append(chain)
    plan.behind = {after: join(group) for after, group in new.items()}
    if new:
        plan.gpus = _gpus(request)
        limit = client.array_limit() if here else client.ARRAY
        most = max(map(len, plan.behind.values()))
        plan.per_task = max(request.per_task, -(-most // limit))
        if plan.per_task > request.per_task:
            say(f"an array has {limit} tasks at most: {plan.per_task} chains in each")
    return plan


def _missing(chains: Sequence[Chain], plan: SlurmPlan) -> dict[Chain, list[Path]]:
    """The chains that need something, and the runs that they miss. The others are settled."""
    found = {}
    for chain in chains:
        outcomes = _as_it_lies(chain)
        if runs := [absolute(job.folder) for job in chain.jobs if job.folder not in outcomes]:
            found[chain] = runs
        else:
            plan.settled.append((chain, [outcomes[job.folder] for job in chain.jobs]))
    return found


def _alive(
    latest: dict[Path, Task],
) -> tuple[dict[Path, Task], list[tuple[Task, State]]]:
    """Of runs without a result: those that their tasks will do yet; and the tasks of the others."""
    tasks = {task.place: task for task in latest.values()}
    states = _patiently(lambda: client.states(tasks)) if tasks else {}
    tried = {task: task.recorded() for task in tasks.values()}
    alive = {
        run: task
        for run, task in latest.items()
        if not states[task.place].ended and run not in tried[task]
    }
    lost = {task.place: task for run, task in latest.items() if run not in alive}
    return alive, [(lost[place], states[place]) for place in sorted(lost)]


def _as_it_lies(chain: Chain) -> dict[Path, Outcome]:
    """What is known of a chain's runs without doing anything: complete, refused, left out."""
    found: dict[Path, Outcome] = {}
    for job in (job for step in chain.steps for job in step):
        if job.needs in found and found[job.needs].state in LOST:
            found[job.folder] = left_out(job)
            continue
        try:
            if is_complete(job):
                found[job.folder] = outcome_of(job, "skipped")
        except UserError as error:
            found[job.folder] = Outcome(job, "failed", reason=str(error), status=USER_ERROR)
    return found


def _known(folder: Path) -> list[Submission]:
    """What was submitted. One whose number never came is looked for by its name."""
    found = []
    for submission in records.read_submissions(folder):
        if not submission.job:
            name = submission.name
            job = _patiently(lambda name=name: client.job_named(name))
            submission = Submission(submission.folder, name, job, submission.runs)
        if submission.job:
            found.append(submission)
    return found


def _patiently(ask: Callable[[], Any]) -> Any:
    """An answer of Slurm's, without which nothing may be submitted. Raises UserError."""
    for _ in range(ATTEMPTS - 1):
        try:
            return ask()
        except NoAnswer:
            time.sleep(AGAIN)
    try:
        return ask()
    except NoAnswer as error:
        raise UserError(f"Slurm doesn't say which jobs it has: {error}") from None


def _gpus(request: Request) -> int:
    if request.gpus is not None:
        return request.gpus
    there = client.has_gpus(request.partition)
    if there is None:
        say("Slurm doesn't say whether the partition has GPUs: one a task (--gpus-per-job)")
    return 0 if there is False else 1
