"""Carry out a plan: skip what is complete, go on past failures, retry once, delete nothing.

Several processes may carry out the same plan at once, on one machine or on several that share the
output folder, and share it: each run is held by a lock while it goes, and looked at again once the
lock is had. Who finds a run of a chain held passes on to the next chain, and comes back.
"""

from __future__ import annotations

import os
import queue
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from dassl.utils import UserError, check_percent, disk_error, read_json, try_flock
from experiments.chains import Chain, Job
from experiments.processes import Processes, RunnerSettings, Watcher
from experiments.watching.lines import say

USER_ERROR = 2  # train.py's exit status for a mistake that no repetition mends
LOST = ("failed", "left out")  # what runs that need it wait for in vain
AGAIN = 0.5  # seconds until a run that another runner has is looked at again


@dataclass(frozen=True)
class Outcome:
    """What became of a run. `state`: done, skipped (it was complete), failed, left out."""

    job: Job
    state: str
    seconds: float = 0.0
    reason: str = ""
    accuracy: float | None = None
    status: int = 0


def read_result(job: Job) -> dict:
    """Return a run's result.json, or {} if there is none yet."""
    try:
        return read_json(job.folder / "result.json", dict)
    except UserError:
        return {}


def has_result(job: Job) -> bool:
    """Whether the folder holds a result, with an accuracy that is one."""
    try:
        check_percent(read_result(job).get("accuracy"), "the accuracy")
    except UserError:
        return False
    return True


def is_complete(job: Job) -> bool:
    """Whether the folder holds this run's result, by its identity.

    Raises UserError if it holds another run's: that is somebody's work.
    """
    if not has_result(job):
        return False
    from tuning.run import is_done

    return is_done(job.arguments)


class Held(Exception):
    """Another process runs what is in this folder."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.folder = folder


@contextmanager
def hold(folder: Path) -> Iterator[IO]:
    """Hold a run's folder against other runners. Raises `Held` if one has it.

    The lock is inherited by the run itself: it outlives a killed runner as long as the run goes
    (which is why it isn't `filelock`'s: those are closed to children).
    """
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / ".runner.lock", "a") as lock:
        if try_flock(lock, folder) is False:
            raise Held(folder)
        yield lock


def run_job(
    job: Job, settings: RunnerSettings, environment: dict[str, str], processes: Processes
) -> Outcome:
    """Bring one run to its result, unless it is there. Raises `Held` if another runner has it."""
    started = time.monotonic()
    status = 0
    try:
        if is_complete(job):
            return outcome_of(job, "skipped")
        with hold(job.folder) as lock:
            if is_complete(job):  # by whoever had the lock before
                return outcome_of(job, "skipped")
            for attempt in range(settings.attempts):
                status = processes.run([job], settings, environment, [lock])
                if status == 0 and has_result(job):
                    return outcome_of(job, "done", time.monotonic() - started)
                if status == USER_ERROR or processes.stopped:
                    break
                if attempt + 1 < settings.attempts:
                    why = processes.last_words(job, status)
                    say(f"failed ({why}), trying again: {job.folder}")
        reason = "interrupted" if processes.stopped else processes.last_words(job, status)
    except UserError as error:
        status, reason = USER_ERROR, str(error)
    except OSError as error:
        status, reason = 1, disk_error(error)
    return Outcome(job, "failed", time.monotonic() - started, reason, status=status)


def run_together(
    jobs: Sequence[Job], settings: RunnerSettings, environment: dict[str, str], processes: Processes
) -> list[Outcome]:
    """Bring runs to their results in one process; return those that this brought there.

    What it leaves without a result, for whatever reason, is for `run_job`.
    """
    started = time.monotonic()
    with ExitStack() as stack:
        locks, missing = [], []
        for job in jobs:
            with suppress(UserError, OSError, Held):  # what another process has comes later
                if not is_complete(job):
                    locks.append(stack.enter_context(hold(job.folder)))
                    if not is_complete(job):
                        missing.append(job)
        if len(missing) < 2:
            return []
        try:
            status = processes.run(missing, settings, environment, locks)
        except OSError:
            return []
        done = []
        for job in missing:
            with suppress(UserError):
                done += [job] if is_complete(job) else []
    if len(done) < len(missing) and not processes.stopped:
        reason = processes.last_words(missing[0], status)
        say(f"failed together ({reason}), now one by one")
    seconds = (time.monotonic() - started) / len(missing)
    return [outcome_of(job, "done", seconds) for job in done]


def outcome_of(job: Job, state: str, seconds: float = 0.0) -> Outcome:
    """The outcome of a run whose result is there."""
    return Outcome(job, state, seconds, accuracy=read_result(job).get("accuracy"))


def left_out(job: Job) -> Outcome:
    """The outcome of a run that needs one that failed."""
    reason = f"the {'model it tests' if job.model else 'teacher'} was not trained"
    return Outcome(job, "left out", reason=reason)


def run_chain(
    chain: Chain,
    settings: RunnerSettings,
    environment: dict[str, str],
    processes: Processes | None = None,
    outcomes: dict[Path, Outcome] | None = None,
) -> list[Outcome]:
    """Run a chain's steps in order; what needs a run that failed is left out.

    Args:
        chain: a run's step comes after that of the run it needs.
        settings: how runs are started.
        environment: theirs.
        processes: those under way, to be ended where this one is.
        outcomes: what became of its runs at an earlier visit, by folder; taken further.

    Raises:
        Held: the rest has to wait for another runner. What could be done meanwhile is.
    """
    processes = processes or Processes()
    outcomes = {} if outcomes is None else outcomes

    def end(outcome: Outcome) -> None:
        outcomes[outcome.job.folder] = outcome
        if not processes.stopped:
            processes.watcher.ends(outcome)

    for step in chain.steps:
        lost = {folder for folder, outcome in outcomes.items() if outcome.state in LOST}
        jobs = [job for job in step if job.needs not in lost]
        new = [job for job in jobs if job.folder not in outcomes]
        for outcome in run_together(new, settings, environment, processes) if new[1:] else ():
            end(outcome)
        held = None
        for job in step:
            if job not in jobs:
                end(left_out(job))
            elif job.folder not in outcomes:
                try:
                    end(run_job(job, settings, environment, processes))
                except Held as error:
                    held = held or error
        if held:
            raise held
    return [outcomes[job.folder] for job in chain.jobs]


Report = Callable[[Chain, list[Outcome]], None]


def run_local(
    chains: list[Chain],
    settings: RunnerSettings,
    slots: list[dict[str, str]],
    report: Report,
    watcher: Watcher | None = None,
) -> None:
    """Run chains side by side, one per slot; a slot is the environment of its processes.

    A chain of which another runner has a run goes to the end of the line. `report` is told of each
    chain that is done, `watcher` of each run.
    """
    free: queue.Queue = queue.Queue()
    for slot in slots:
        free.put(slot)
    own = threading.local()
    processes = _processes(settings, slots)
    processes.watcher = watcher or processes.watcher
    visited: dict[Chain, dict[Path, Outcome]] = {chain: {} for chain in chains}

    def take_slot() -> None:
        own.slot = free.get_nowait()

    def work(chain: Chain) -> list[Outcome] | Held:
        try:
            return run_chain(chain, settings, own.slot, processes, visited[chain])
        except Held as error:
            return error
        finally:
            processes.end_chain(own.slot)

    with closing(processes), ThreadPoolExecutor(len(slots), initializer=take_slot) as pool:
        try:
            _go_round(chains, lambda chain: pool.submit(work, chain), report)
        except BaseException:
            with suppress(OSError):
                say("ending the runs under way: they save what they have")
            try:
                pool.shutdown(wait=False, cancel_futures=True)
                processes.stop()
            except BaseException:  # interrupted again: it doesn't wait
                processes.stop(grace=0)
                raise
            raise


def _processes(settings: RunnerSettings, slots: list[dict[str, str]]) -> Processes:
    """Workers, if they are wanted: their environment is what all slots share."""
    if not settings.warm:
        return Processes()
    from experiments.workers import Workers

    shared = set.intersection(*(set(slot.items()) for slot in slots))
    return Workers(settings, dict(shared))


def _go_round(chains: Sequence[Chain], submit: Callable[[Chain], Future], report: Report) -> None:
    """Report each chain when it is done; take up again, some time later, what others hold."""
    futures = {submit(chain): chain for chain in chains}
    held: list[Chain] = []
    told: set[Path] = set()
    while futures or held:
        done, going = wait(futures, AGAIN if held else None, FIRST_COMPLETED)
        for future in done:
            chain, result = futures.pop(future), future.result()
            if not isinstance(result, Held):
                report(chain, result)
                continue
            held.append(chain)
            if not futures and result.folder not in told:
                told.add(result.folder)
                say(f"waiting for another process that runs {result.folder}")
        if held and not done:
            futures |= {submit(chain): chain for chain in held}
            held = []
        elif not futures:
            time.sleep(AGAIN)


def local_slots(gpus: int, per_gpu: int, jobs: int, cores: int = 0) -> list[dict[str, str]]:
    """Return the environments of `jobs` processes at once (0: one per GPU place, or two cores).

    cores: how many they share (0: all of the machine).
    """
    cores = cores or os.cpu_count() or 1
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    names = visible.split(",") if visible else [str(i) for i in range(gpus)]
    places = [{"CUDA_VISIBLE_DEVICES": name} for _ in range(per_gpu) for name in names[:gpus]]
    jobs = jobs or len(places) or max(1, cores // 2)
    if places:
        return (places * jobs)[:jobs]
    threads = os.environ.get("OMP_NUM_THREADS") or str(max(1, cores // jobs))
    return [{"OMP_NUM_THREADS": threads} for _ in range(jobs)]
