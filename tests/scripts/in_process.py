"""The doors' commands in this process: what they do, without the processes they would start."""

from __future__ import annotations

import contextlib
import importlib
import io
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

import train
from dassl.utils import user_errors
from experiments import launch, runner
from experiments.processes import Processes

DOORS = {
    "run_protocol": "experiments.launch",
    "parse_results": "experiments.results.command",
    "analyze": "experiments.analysis_command",
    "predict": "tuning.prediction",
    "hours": "benchmarks.hours",
}
HEEDED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class _Done:
    """A process that has ended."""

    def __init__(self, printed: str, status: int) -> None:
        self.stdout = printed.encode().splitlines(keepends=True)
        self.status = status

    def wait(self, timeout: float | None = None) -> int:
        return self.status


class InProcess(Processes):
    """Runs of train.py, one after the other, here."""

    def begin(self, words, settings, environment, locks) -> _Done:
        return _Done(*called(train.main, words))


@contextlib.contextmanager
def as_it_was() -> Iterator[None]:
    """What a door changes of its process is put back."""
    handlers = {number: signal.getsignal(number) for number in HEEDED}
    before = os.environ.copy()
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
        os.environ.clear()
        os.environ.update(before)


def called(main, *arguments) -> tuple[str, int]:
    """What a door's function printed, and its exit status."""
    printed, status = io.StringIO(), 0
    with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
        try:
            with user_errors():
                status = main(*arguments)
        except SystemExit as end:
            status = end.code
    return printed.getvalue(), status if isinstance(status, int) else 0


def run(command: Sequence[str], folder: Path) -> subprocess.CompletedProcess:
    """A door, as `[python, DOOR, *words]` would run it in a folder."""
    _, script, *words = command
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runner, "Processes", InProcess)
        patch.setattr(launch, "WARM", ())
        patch.setattr(sys, "argv", [script, *words])
        patch.chdir(folder)
        door = importlib.import_module(DOORS[Path(script).stem])
        with as_it_was():
            printed, status = called(door.main)
    return subprocess.CompletedProcess(command, status, printed, "")
