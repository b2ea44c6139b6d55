"""Carry out a plan: skip what is complete, go on past failures, retry once, delete nothing.

Several processes may carry out the same plan at once, on one machine or on several that share the
output folder: each run is held by a lock while it goes, and looked at again once the lock is had.
"""

from __future__ import annotations

import fcntl
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from dassl.utils import UserError, check_percent, disk_error, read_json
from experiments.protocols import ROOT, Chain, Job

USER_ERROR = 2  # train.py's exit status for a mistake that no repetition mends
CONSOLE = "console.txt"  # what a run printed, all attempts
GRACE = 30.0  # seconds a run has to save and end; Slurm's own, by default


@dataclass(frozen=True)
class Outcome:
    """What became of a run. `state`: done, skipped (it was complete), failed, left out."""

    job: Job
    state: str
    seconds: float = 0.0
    reason: str = ""
    accuracy: float | None = None
    status: int = 0


@dataclass(frozen=True)
class Settings:
    """How runs go: with which Python, how often they are tried alone, and whether shown."""

    python: str = sys.executable
    attempts: int = 2
    show: bool = False


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


@contextmanager
def hold(folder: Path, wait: bool = True) -> Iterator[IO]:
    """Hold a run's folder against other runners; waits for one that has it.

    Raises BlockingIOError instead if it is not to wait.

    The lock is inherited by the run itself: it outlives a killed runner as long as the run goes.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / ".runner.lock", "a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if not wait:
                raise
            print(f"waiting for another process that runs {folder}", flush=True)
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield lock


class Runs:
    """The processes under way, so that an interruption can end them."""

    def __init__(self) -> None:
        self.tails: dict[Path, deque[bytes]] = {}  # the last lines of each run's latest output
        self._processes: set[subprocess.Popen] = set()
        self._lock = threading.Lock()
        self.stopped = False

    def run(
        self,
        jobs: Sequence[Job],
        settings: Settings,
        environment: dict[str, str],
        locks: Sequence[IO],
    ) -> int:
        """Run train.py once, for all these jobs.

        Returns its exit status (negative: the signal that ended it).
        """
        arguments = list(jobs[0].arguments)
        for job in jobs[1:]:
            arguments += ["--and", *job.arguments]
        with ExitStack() as stack:
            # Unbuffered: what finds no room must not come up again when the file is closed.
            consoles = [
                stack.enter_context(open(job.folder / CONSOLE, "ab", buffering=0)) for job in jobs
            ]
            tail: deque[bytes] = deque(maxlen=50)
            self.tails |= {job.folder: tail for job in jobs}
            with self._lock:
                if self.stopped:
                    return -signal.SIGTERM
                process = subprocess.Popen(
                    [settings.python, "train.py", *arguments],
                    cwd=ROOT,
                    env={**os.environ, "PYTHONUNBUFFERED": "1", **environment},
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.STDOUT,
                    pass_fds=[lock.fileno() for lock in locks],
                )
                self._processes.add(process)
            for line in process.stdout:
                tail.append(line)
                for console in list(consoles):
                    try:
                        console.write(line)
                    except OSError:  # a full disk: the run itself says so, and is read to its end
                        consoles.remove(console)
                if settings.show:
                    with suppress(OSError):
                        sys.stdout.buffer.write(line)
                        sys.stdout.flush()
            status = process.wait()
            with self._lock:
                self._processes.discard(process)
            return status

    def last_words(self, job: Job, status: int) -> str:
        """The last line a run's process printed: its own `error: …`, or the end of a traceback."""
        if status < 0:
            return f"killed by {signal.Signals(-status).name}"
        printed = b"".join(self.tails.get(job.folder, ())).decode("utf-8", "replace")
        lines = [line.strip() for line in printed.splitlines() if line.strip()]
        errors = [line for line in lines if line.startswith("error: ")]
        last = (errors or lines or [f"exit status {status}"])[-1]
        return last.removeprefix("error: ")

    def stop(self, grace: float = GRACE) -> None:
        """End all processes under way; no other starts.

        Each saves what it has and ends; one that hasn't after `grace` seconds is killed.
        """
        with self._lock:
            self.stopped = True
            processes = list(self._processes)
        for process in processes:
            process.terminate()
        deadline = time.monotonic() + grace
        for process in processes:
            try:
                process.wait(max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()


def run_job(job: Job, settings: Settings, environment: dict[str, str], runs: Runs) -> Outcome:
    """Bring one run to its result, unless it is there."""
    started = time.monotonic()
    status = 0
    try:
        if is_complete(job):
            return _done(job, "skipped")
        with hold(job.folder) as lock:
            if is_complete(job):  # by whoever had the lock before
                return _done(job, "skipped")
            for attempt in range(settings.attempts):
                status = runs.run([job], settings, environment, [lock])
                if status == 0 and has_result(job):
                    return _done(job, "done", time.monotonic() - started)
                if status == USER_ERROR or runs.stopped:
                    break
                if attempt + 1 < settings.attempts:
                    print(f"failed ({runs.last_words(job, status)}), trying again: {job.folder}")
        reason = "interrupted" if runs.stopped else runs.last_words(job, status)
    except UserError as error:
        status, reason = USER_ERROR, str(error)
    except OSError as error:
        status, reason = 1, disk_error(error)
    return Outcome(job, "failed", time.monotonic() - started, reason, status=status)


def run_together(
    jobs: Sequence[Job], settings: Settings, environment: dict[str, str], runs: Runs
) -> list[Outcome]:
    """Bring runs to their results in one process; return those that this brought there.

    What it leaves without a result, for whatever reason, is for `run_job`.
    """
    started = time.monotonic()
    with ExitStack() as stack:
        locks, missing = [], []
        for job in jobs:
            with suppress(UserError, OSError):  # one that another process has is waited for later
                if not is_complete(job):
                    locks.append(stack.enter_context(hold(job.folder, wait=False)))
                    if not is_complete(job):
                        missing.append(job)
        if len(missing) < 2:
            return []
        try:
            status = runs.run(missing, settings, environment, locks)
        except OSError:
            return []
        done = []
        for job in missing:
            with suppress(UserError):
                done += [job] if is_complete(job) else []
    if len(done) < len(missing) and not runs.stopped:
        reason = runs.last_words(missing[0], status)
        print(f"failed together ({reason}), now one by one", flush=True)
    seconds = (time.monotonic() - started) / len(missing)
    return [_done(job, "done", seconds) for job in done]


def _done(job: Job, state: str, seconds: float = 0.0) -> Outcome:
    return Outcome(job, state, seconds, accuracy=read_result(job).get("accuracy"))


def run_chain(
    chain: Chain, settings: Settings, environment: dict[str, str], runs: Runs | None = None
) -> list[Outcome]:
    """Run a chain's steps in order; the tests of a model whose training failed are left out."""
    runs = runs or Runs()
    outcomes: dict[Path, Outcome] = {}
    for step in chain.steps:
        lost = {folder for folder, outcome in outcomes.items() if outcome.state == "failed"}
        jobs = [job for job in step if job.model not in lost]
        for outcome in run_together(jobs, settings, environment, runs) if jobs[1:] else ():
            outcomes[outcome.job.folder] = outcome
        for job in step:
            if job not in jobs:
                reason = "the model it tests was not trained"
                outcomes[job.folder] = Outcome(job, "left out", reason=reason)
            elif job.folder not in outcomes:
                outcomes[job.folder] = run_job(job, settings, environment, runs)
    return [outcomes[job.folder] for job in chain.jobs]


Report = Callable[[Chain, list[Outcome]], None]


def run_local(
    chains: list[Chain], settings: Settings, slots: list[dict[str, str]], report: Report
) -> None:
    """Run chains side by side, one per slot; a slot is the environment of its processes."""
    free: queue.Queue = queue.Queue()
    for slot in slots:
        free.put(slot)
    runs = Runs()

    def work(chain: Chain) -> list[Outcome]:
        environment = free.get()
        try:
            return run_chain(chain, settings, environment, runs)
        finally:
            free.put(environment)

    with ThreadPoolExecutor(len(slots)) as pool:
        try:
            futures = {pool.submit(work, chain): chain for chain in chains}
            for future in as_completed(futures):
                report(futures[future], future.result())
        except BaseException:
            try:
                pool.shutdown(wait=False, cancel_futures=True)
                runs.stop()
            except BaseException:  # interrupted again: it doesn't wait
                runs.stop(grace=0)
                raise
            raise


def local_slots(gpus: int, per_gpu: int, jobs: int) -> list[dict[str, str]]:
    """Return the environments of `jobs` processes at once (0: one per GPU place, or two cores)."""
    cores = os.cpu_count() or 1
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    names = visible.split(",") if visible else [str(i) for i in range(gpus)]
    places = [{"CUDA_VISIBLE_DEVICES": name} for _ in range(per_gpu) for name in names[:gpus]]
    jobs = jobs or len(places) or max(1, cores // 2)
    if places:
        return (places * jobs)[:jobs]
    threads = os.environ.get("OMP_NUM_THREADS") or str(max(1, cores // jobs))
    return [{"OMP_NUM_THREADS": threads} for _ in range(jobs)]


def run_slurm(
    chains: list[Chain], settings: Settings, logs: Path, parameters: dict, report: Report
) -> None:
    """Give each chain to Slurm as a job, and wait for all of them.

    Raises UserError if submitit or Slurm is missing. Jobs go on if this process is interrupted; the
    same command later takes up what they have done.
    """
    try:
        import submitit
    except ImportError:
        raise UserError("--cluster slurm needs submitit: pip install submitit") from None
    os.environ["PYTHONPATH"] = os.pathsep.join(
        filter(None, [str(ROOT), os.environ.get("PYTHONPATH")])
    )
    try:
        executor = submitit.AutoExecutor(folder=logs / "%j", cluster="slurm")
        executor.update_parameters(name="dept", **parameters)
        with executor.batch():
            jobs = [executor.submit(run_chain, chain, settings, {}) for chain in chains]
    except (RuntimeError, ValueError, submitit.core.utils.UncompletedJobError) as error:
        raise UserError(f"Slurm did not take the jobs: {error}") from None
    print(f"submitted {len(jobs)} Slurm jobs, {jobs[0].job_id} …; their logs: {logs}", flush=True)
    waiting = dict(zip(jobs, chains, strict=True))
    while waiting:
        for job, chain in list(waiting.items()):
            if not job.done():
                continue
            del waiting[job]
            report(chain, _slurm_outcomes(job, chain))
        time.sleep(2 if waiting else 0)


def _slurm_outcomes(job: object, chain: Chain) -> list[Outcome]:
    """Return what a Slurm job says of its runs; if it died, what their folders say."""
    error = job.exception()
    if error is None:
        return job.result()
    reason = f"Slurm job {job.job_id} ({job.state}): {str(error).strip().splitlines()[-1]}"
    return [
        _done(each, "done")
        if is_complete(each)
        else Outcome(each, "failed", reason=reason, status=1)
        for each in chain.jobs
    ]
