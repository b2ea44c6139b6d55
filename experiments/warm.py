"""A process that has loaded PyTorch, and forks workers that run train.py in turn without the wait.

    python -m experiments.warm      as workers.py starts it: its standard input is a socket

It computes nothing itself: a fork has the forking thread alone, so no pool of threads may have been
started. A worker takes commands until the runner hangs up, or until one of them fails.
"""

from __future__ import annotations

import atexit
import gc
import io
import os
import selectors
import signal
import socket
import sys
import traceback
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from dassl.utils import (
    GOES_ON,
    Terminated,
    forget_peak_memory,
    heed_signals,
    setup_logger,
    unlock_all,
    user_errors,
)
from dassl.utils.errors import INTERRUPTED
from experiments.messages import receive, send

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
CRASHED = 1  # Python's own exit status after a traceback


def serve(program: Callable[[list[str]], None]) -> None:
    """Fork a worker for each message, until the runner is gone, and tell how each ends.

    With each come two files: the socket of the worker's commands, and where its exit status goes.

    program: what a worker calls with the words of a command.
    """
    control = socket.socket(fileno=os.dup(0))
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    # Held back, not ignored: a fork has what falls before it can heed it.
    signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    woken, wake = socket.socketpair()
    for each in (woken, wake):
        each.setblocking(False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(wake.fileno(), warn_on_full_buffer=False)
    ends: dict[int, int] = {}  # process -> where its exit status goes
    with selectors.DefaultSelector() as selector:
        selector.register(control, selectors.EVENT_READ)
        selector.register(woken, selectors.EVENT_READ)
        while True:
            ready = {key.fileobj for key, _ in selector.select()}
            if woken in ready:
                with suppress(BlockingIOError):
                    woken.recv(4096)
                _reap(ends)
            if control not in ready:
                continue
            if (received := receive(control)) is None:
                return
            commands, end = received[1]
            process = os.fork()
            if not process:
                signal.set_wakeup_fd(-1)
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                selector.close()
                for each in (control, woken, wake):
                    each.close()
                for file in (end, *ends.values()):
                    os.close(file)
                _be_a_worker(socket.socket(fileno=commands), program)
            os.close(commands)
            ends[process] = end


def _reap(ends: dict[int, int]) -> None:
    """Tell the exit statuses of those that have ended."""
    while True:
        try:
            process, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return
        if not process:
            return
        if (file := ends.pop(process, None)) is not None:
            with suppress(OSError):  # nobody asks any more
                os.write(file, str(os.waitstatus_to_exitcode(status)).encode())
            os.close(file)


def _be_a_worker(commands: socket.socket, program: Callable[[list[str]], None]) -> None:
    """Do what comes until something fails; end this process."""
    status = 0
    try:
        heed_signals()
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
        send(commands, {"process": os.getpid()})
        while not status and (received := receive(commands)) is not None:
            message, (output, *locks) = received
            os.environ.update(message["environment"])
            status = _run(program, message["words"], output)
            for lock in locks:
                os.close(lock)
            send(commands, {"status": status})
    except (KeyboardInterrupt, Terminated) as error:  # between two commands
        status = error.args[0] if isinstance(error, Terminated) else INTERRUPTED
    except OSError:  # nobody waits for it
        status = status or CRASHED
    finally:
        with suppress(BaseException):
            atexit._run_exitfuncs()
        # Not the interpreter's own end: the frames below are the forking process's.
        os._exit(status)


def _run(program: Callable[[list[str]], None], words: list[str], output: int) -> int:
    """Have a command print into a file, as a process of its own would; → its exit status."""
    os.dup2(output, 1)
    os.dup2(output, 2)
    os.close(output)
    # Unbuffered: a killed run's last words are read.
    streams = [
        io.TextIOWrapper(io.FileIO(number, "w", closefd=False), errors=errors, write_through=True)
        for number, errors in ((1, "strict"), (2, "backslashreplace"))
    ]
    sys.stdout, sys.stderr = streams
    forget_peak_memory()
    status = 0
    try:
        with user_errors(f"interrupted; {GOES_ON}"):
            program(words)
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else CRASHED
    except BaseException:
        with suppress(OSError):
            traceback.print_exc()
        status = CRASHED
    # What the end of a process would do.
    setup_logger(None)
    unlock_all()
    gc.collect()
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for number in (1, 2):  # so that whoever reads what was printed sees its end
        os.dup2(nowhere, number)
    os.close(nowhere)
    return status


class Training:
    """train.py as a worker's program, each command as if it were the process's first.

    What is dear and never changes stays: the frozen towers.
    """

    def __init__(self) -> None:
        # What a run takes hold of sooner or later, without computing.
        import torch.fx.experimental.symbolic_shapes  # a mapped step's

        import train  # before PyTorch: it says how threads wait
        import torch.utils.tensorboard  # isort: skip
        import datasets  # noqa: F401
        import trainers
        import tuning.multi_seed  # noqa: F401
        from dassl.engine import TRAINER_REGISTRY  # noqa: F401

        trainers.modules()
        self._main = train.main
        self._generator = torch.get_rng_state()
        self._towers: list[Any] = []

    def __call__(self, words: list[str]) -> None:
        """Do what `python train.py WORDS` does."""
        import random

        import numpy as np
        import torch

        from dassl.utils.seeds import forget_any_seed
        from tuning.loading import loaded_encoders

        sys.argv = ["train.py", *words]
        torch.set_rng_state(self._generator)
        random.seed()
        np.random.seed()
        forget_any_seed()
        self._main(words)
        self._towers = loaded_encoders()


def main() -> None:
    """Load, then serve."""
    signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    program = Training()
    gc.freeze()  # a collection in a worker would copy what it shares with the others
    serve(program)


if __name__ == "__main__":
    main()
