"""The processes that runs go in: one for each run, or for each step of runs side by side."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Iterable, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Protocol

from experiments.chains import Job
from experiments.protocols import ROOT

CONSOLE = "console.txt"  # what a run printed, all attempts
GRACE = 30.0  # seconds a run has to save and end; Slurm's own, by default


@dataclass(frozen=True)
class RunnerSettings:
    """How runs go: with which Python, how often they are tried alone, whether shown, and where."""

    python: str = sys.executable
    attempts: int = 2
    show: bool = False
    # The command that starts what workers are forked from; (): each run gets a process of its own.
    warm: tuple[str, ...] = ()
    # The plan's folder (watching/records.py), where a process elsewhere says how far it is.
    plan: Path | None = None


class Watcher:
    """Is told what becomes of runs, by any thread. This one keeps nothing of it."""

    def begins(self, jobs: Sequence[Job]) -> None:
        """Runs begin, side by side; again, if they are tried again."""

    def ends(self, outcome: Any) -> None:
        """A run has its `runner.Outcome`, unless it was interrupted."""


class Process(Protocol):
    """What the runner needs of a `subprocess.Popen`."""

    @property
    def stdout(self) -> Iterable[bytes]: ...  # noqa: D102
    def wait(self, timeout: float | None = None) -> int: ...  # noqa: D102
    def terminate(self) -> None: ...  # noqa: D102
    def kill(self) -> None: ...  # noqa: D102


class Processes:
    """The processes under way, so that an interruption can end them: one for each run or step."""

    def __init__(self) -> None:
        self.watcher = Watcher()
        self.tails: dict[Path, deque[bytes]] = {}  # the last lines of each run's latest output
        self._processes: set[Process] = set()
        self._lock = threading.Lock()
        self.stopped = False

    def run(
        self,
        jobs: Sequence[Job],
        settings: RunnerSettings,
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
            self.prepare()
            if not self.stopped:
                self.watcher.begins(jobs)
            with self._lock:
                if self.stopped:
                    return -signal.SIGTERM
                process = self.begin(arguments, settings, environment, locks)
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

    def prepare(self) -> None:
        """What may take long, before `begin`."""

    def begin(
        self,
        words: list[str],
        settings: RunnerSettings,
        environment: dict[str, str],
        locks: Sequence[IO],
    ) -> Process:
        """Start `train.py WORDS`. Raises OSError if that can't be."""
        process: Any = subprocess.Popen(
            [settings.python, "train.py", *words],
            cwd=ROOT,
            env={**os.environ, "PYTHONUNBUFFERED": "1", **environment},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            pass_fds=[lock.fileno() for lock in locks],
        )
        return process

    def end_chain(self, environment: dict[str, str]) -> None:
        """Called when a chain, or what could be done of it, is done in this thread."""

    def close(self) -> None:
        """Called when all is done."""

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
