"""Runs in workers: forks of a process that has loaded PyTorch already (warm.py).

Each of the runner's threads has one at a time. On a CPU it is new for each chain, whose tests go
where their model was trained; on a GPU, whose start is dear, it stays. One that a run has ended,
by a failure or a kill, is replaced: nobody else's run was in it.
"""

from __future__ import annotations

import os
import selectors
import signal
import socket
import subprocess
import threading
from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import IO

from experiments.messages import receive, send
from experiments.processes import Process, Processes, RunnerSettings
from experiments.protocols import ROOT

GPU = "CUDA_VISIBLE_DEVICES"  # stands in the environment of a place on a GPU


class NoWorkers(Exception):
    """The warm process is gone, or never came up."""


class Worker:
    """A forked process that takes commands.

    Raises NoWorkers if the warm process, at the other end of `control`, doesn't give one.
    """

    def __init__(self, control: socket.socket, lock: threading.Lock) -> None:
        self.commands, theirs = socket.socketpair()
        self._end, end = os.pipe()
        try:
            with lock:
                send(control, {}, [theirs.fileno(), end])
        except OSError:
            raise NoWorkers from None
        finally:
            theirs.close()
            os.close(end)
        if (born := receive(self.commands)) is None:
            self.close()
            raise NoWorkers
        self.process: int = born[0]["process"]
        self.ended = False

    def status(self) -> int:
        """Wait for its end; return its exit status (negative: the signal that ended it)."""
        told = b""
        while part := os.read(self._end, 64):
            told += part
        self.ended = True
        return int(told or -signal.SIGKILL)  # of a warm process that was killed, too

    def signal(self, number: int) -> None:
        """Send it a signal."""
        if not self.ended:
            with suppress(ProcessLookupError):
                os.kill(self.process, number)

    def close(self) -> None:
        """Let it end once it has nothing to do."""
        self.commands.close()
        with suppress(OSError):
            os.close(self._end)
            self._end = -1


class Command(Process):
    """One command under way in a worker; like a `subprocess.Popen` of it.

    Raises OSError if the worker is gone.
    """

    def __init__(
        self, worker: Worker, words: list[str], environment: dict[str, str], locks: Sequence[int]
    ) -> None:
        self.worker = worker
        self._over = threading.Event()
        self._output, theirs = os.pipe()
        try:
            message = {"words": words, "environment": environment}
            send(worker.commands, message, [theirs, *locks])
        except OSError:
            os.close(self._output)
            raise
        finally:
            os.close(theirs)

    @property
    def stdout(self) -> Iterator[bytes]:
        """The lines it prints, until it is over, even if something it started still could print."""
        rest = b""
        with selectors.DefaultSelector() as selector:
            selector.register(self._output, selectors.EVENT_READ)
            selector.register(self.worker.commands, selectors.EVENT_READ)
            while any(key.fd == self._output for key, _ in selector.select()):
                if not (part := os.read(self._output, 1 << 16)):
                    break
                *lines, rest = (rest + part).splitlines(keepends=True)
                if rest.endswith(b"\n"):
                    lines, rest = [*lines, rest], b""
                yield from lines
        os.close(self._output)
        if rest:
            yield rest

    def wait(self, timeout: float | None = None) -> int:
        """Return the exit status; with a timeout, for whoever doesn't read the output, 0 at once.

        Raises subprocess.TimeoutExpired.
        """
        if timeout is not None:
            if not self._over.wait(timeout):
                raise subprocess.TimeoutExpired("a worker", timeout)
            return 0
        told = receive(self.worker.commands)
        status: int = self.worker.status() if told is None else told[0]["status"]
        if status:
            self.worker.ended = True
        self._over.set()
        return status

    def terminate(self) -> None:
        """Have it save and end."""
        self.worker.signal(signal.SIGTERM)

    def kill(self) -> None:
        """End it."""
        self.worker.signal(signal.SIGKILL)


class Workers(Processes):
    """The workers under way, for as long as the block lasts, and the process they are forked from.

    Where that can't be had, a line says so, and each run gets a process of its own.

    Args:
        settings: `warm` is the command that starts it.
        environment: of all workers, read when PyTorch is loaded.
    """

    def __init__(self, settings: RunnerSettings, environment: dict[str, str]) -> None:
        super().__init__()
        self._settings = settings
        self._environment = environment
        self._own = threading.local()
        self._asking = threading.Lock()
        self._all: set[Worker] = set()
        self._control: socket.socket | None = None
        self._start()

    def _start(self) -> None:
        self._control, theirs = socket.socketpair()
        try:
            self._warm = subprocess.Popen(
                self._settings.warm,
                cwd=ROOT,
                env={**os.environ, **self._environment},
                stdin=theirs,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )
        except OSError as error:
            self._give_up(str(error))
        finally:
            theirs.close()

    def _give_up(self, why: str) -> None:
        with self._lock:
            control, self._control = self._control, None
        if control is not None:
            control.close()
            print(f"no workers ({why}): each run in a process of its own", flush=True)

    def prepare(self) -> None:
        """Have a worker for this thread; wait for the warm process."""
        worker: Worker | None = getattr(self._own, "worker", None)
        if worker is not None and worker.ended:
            self._leave()
            worker = None
        if worker is None and (control := self._control) is not None:
            try:
                self._own.worker = Worker(control, self._asking)
                self._all.add(self._own.worker)
            except NoWorkers:
                if not self.stopped:
                    self._give_up("the process they come from has ended")

    def begin(
        self,
        words: list[str],
        settings: RunnerSettings,
        environment: dict[str, str],
        locks: Sequence[IO],
    ) -> Process:
        """As the base class's, in this thread's worker."""
        worker: Worker | None = getattr(self._own, "worker", None)
        if worker is not None:
            try:
                return Command(worker, words, environment, [lock.fileno() for lock in locks])
            except OSError:  # killed while it had nothing to do
                self._leave()
                self.prepare()
                if (worker := getattr(self._own, "worker", None)) is not None:
                    return Command(worker, words, environment, [lock.fileno() for lock in locks])
        return super().begin(words, settings, environment, locks)

    def end_chain(self, environment: dict[str, str]) -> None:
        """On a CPU, let the worker go: the next chain begins in a process as new as a run's own."""
        if GPU not in environment:
            self._leave()

    def _leave(self) -> None:
        worker: Worker | None = getattr(self._own, "worker", None)
        self._own.worker = None
        if worker is not None:
            self._all.discard(worker)
            worker.close()

    def close(self) -> None:
        """Let all workers end, and the process they come from."""
        for worker in list(self._all):
            worker.close()
        if self._control is not None:
            self._control.close()
            self._warm.wait()
