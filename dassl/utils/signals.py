"""SIGTERM and Ctrl-C: at once, or held back until what a step has done is saved."""

from __future__ import annotations

import atexit
import functools
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from .errors import Terminated
from .modules import shared

if TYPE_CHECKING:
    import torch

_state = {"held": False, "wanted": 0}  # wanted: the signal that came meanwhile


def heed_signals() -> None:
    """From here on SIGTERM and SIGHUP raise `Terminated`, and Ctrl-C raises KeyboardInterrupt.

    Inside `holding_back` they only make `stop_wanted` true; a second Ctrl-C doesn't wait.
    """
    if sys.unraisablehook is not _unraisable:
        _state["unraisable"] = sys.unraisablehook
        sys.unraisablehook = _unraisable
    for name in ("SIGTERM", "SIGHUP", "SIGINT"):
        if number := getattr(signal, name, None):  # not on every system
            signal.signal(number, _handle)


def _handle(number: int, frame: object) -> None:
    impatient = number == signal.SIGINT == _state["wanted"]
    _state["wanted"] = number
    if not _state["held"] or impatient:
        _stop()


def _stop() -> None:
    number, _state["wanted"] = _state["wanted"], 0
    _state["held"] = False
    raise KeyboardInterrupt if number == signal.SIGINT else Terminated(128 + number)


def _unraisable(event: sys.UnraisableHookArgs) -> None:
    """A signal that fell into a destructor raised nothing there: it comes again, a bit later."""
    if not isinstance(event.exc_value, (KeyboardInterrupt, Terminated)):
        _state["unraisable"](event)
        return
    interrupted = isinstance(event.exc_value, KeyboardInterrupt)
    number = signal.SIGINT if interrupted else event.exc_value.args[0] - 128
    again = threading.Timer(0.01, os.kill, (os.getpid(), number))
    again.daemon = True
    again.start()


@contextmanager
def holding_back() -> Iterator[None]:
    """After `hold_back` inside, signals wait for the end of this block, or for `stop_if_wanted`."""
    try:
        yield
    except BaseException:
        _state["held"] = False
        raise
    stop_if_wanted()
    _state["held"] = False


def hold_back() -> None:
    """From here on a signal waits: whoever calls this asks `stop_wanted` often."""
    _state["held"] = True


def stop_wanted() -> bool:
    """Whether a signal is waiting."""
    return bool(_state["wanted"])


def stop_if_wanted() -> None:
    """Raise for a signal that is waiting."""
    if _state["wanted"]:
        _stop()


def worker_init(worker: int, ending: torch.Tensor | None = None) -> None:
    """Have a loader's worker leave signals to the process it works for.

    They are often sent to all processes at once; a worker that ends takes the step under way, and
    what it was to save, with it.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0) if ending else None)


@functools.cache
def worker_init_fn() -> functools.partial:
    """`worker_init` for a DataLoader: its workers do heed SIGTERM once this process ends."""
    import torch

    ending = shared(torch.zeros((), dtype=torch.bool))
    atexit.register(ending.fill_, True)
    return functools.partial(worker_init, ending=ending)
