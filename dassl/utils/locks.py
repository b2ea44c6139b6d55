"""One process per folder, or per file: POSIX `flock`, which a killed process gives back.

Where a file system has no such locks, or keeps them to one machine, a line says so once and the
processes go on without: https://man7.org/linux/man-pages/man2/flock.2.html tells which do.

Not the package `filelock`: its locks are let go by unlocking, which in a forked worker would unlock
the parent's too, where here the worker only closes its copy; and it needs a file of its own in a
folder that is only waited for.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import IO

from .errors import UserError, is_disk_error
from .storage import mkdir_if_missing

try:
    import fcntl
except ImportError:  # not a POSIX system: no flock, so nothing is held
    fcntl = None

MOUNTS = Path("/proc/self/mountinfo")
# File systems, and the mount options with which other machines don't see their locks.
_LOCAL = {
    **dict.fromkeys(("nfs", "nfs4"), {"nolock", "local_lock=all", "local_lock=flock"}),
    "lustre": {"localflock"},
    "cifs": {"nobrl"},
    "fuse.sshfs": {"rw", "ro"},  # whatever its options
}
_POLL = 0.02, 0.5  # seconds between two looks at a lock that another process has: first, last

_held: dict[Path, int] = {}  # folder, or file made for a lock -> file descriptor
_told: set[tuple[int, str]] = set()


def try_flock(file: int | IO, path: str | os.PathLike) -> bool | None:
    """Lock an open file if nobody else has; it is given back when the file is closed.

    Returns whether it is locked: False if another process has it, None where there are no locks.
    That, or locks that only this machine sees, is said once per file system.
    """
    if fcntl is None:
        return None
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        _tell(path, f"has no locks ({error.strerror})")
        return None
    if kind := _of_one_machine(_device(path)):
        _tell(path, f"({kind}) keeps its locks to this machine")
    return True


def _tell(path: str | os.PathLike, what: str) -> None:
    key = _device(path), what
    if key not in _told:
        _told.add(key)
        told = "runs elsewhere at the same time don't notice each other"
        print(f"the file system of {path} {what}: {told}", flush=True)


def _device(path: str | os.PathLike) -> int:
    try:
        return os.stat(path).st_dev
    except OSError:
        return -1


@cache
def _of_one_machine(device: int) -> str:
    """Return which file system a device has, if it is one whose locks other machines don't see.

    Only Linux tells; elsewhere "", as for all others.
    """
    if device < 0 or not MOUNTS.exists():
        return ""
    wanted = f"{os.major(device)}:{os.minor(device)}"
    with suppress(OSError, UnicodeError):
        for line in MOUNTS.read_text().splitlines():
            before, _, after = line.partition(" - ")
            mount, (kind, *rest) = before.split(), after.split()
            options = set(",".join([mount[5], *rest[1:]]).split(","))
            if mount[2] == wanted and options & _LOCAL.get(kind, set()):
                return kind
    return ""


def lock_folder(folder: str | os.PathLike) -> None:
    """Hold `folder` until this process ends, however it ends. Holding it already is fine.

    Raises UserError if another process holds it.
    """
    mkdir_if_missing(folder)
    key = Path(folder).resolve()
    if key in _held or fcntl is None:
        return
    try:
        descriptor = os.open(key / ".lock", os.O_RDWR | os.O_CREAT, 0o666)
    except OSError as error:
        if is_disk_error(error):
            raise
        raise UserError(f"cannot write to the folder {folder}: {error.strerror}") from None
    if try_flock(descriptor, folder) is False:
        os.close(descriptor)
        raise UserError(
            f"the folder {folder} is in use by another run; wait for it or choose another"
        )
    _held[key] = descriptor


def unlock_folder(folder: str | os.PathLike) -> None:
    """Let another process have `folder`."""
    descriptor = _held.pop(Path(folder).resolve(), None)
    if descriptor is not None:
        os.close(descriptor)


def unlock_all() -> None:
    """Let other processes have all that this one holds, as its end would."""
    while _held:
        os.close(_held.popitem()[1])


@contextmanager
def wait_for_folder(folder: str | os.PathLike) -> Iterator[bool]:
    """Inside, this process alone has `folder`, after waiting for others; nothing is written there.

    Yields whether it has: not on a file system without locks.
    """
    mkdir_if_missing(folder)
    if fcntl is None:
        yield False
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        pauses = _pauses()
        while (got := try_flock(descriptor, folder)) is False:
            time.sleep(next(pauses))
        yield bool(got)
    finally:
        os.close(descriptor)


@contextmanager
def hold_file(path: str | os.PathLike, wait: Callable[[], bool]) -> Iterator[bool]:
    """Inside, this process alone has `path`, a file that is made for this and removed at the end.

    Yields whether it has: not where locks can't be had, nor where another has it and `wait`,
    asked again and again, says no.
    """
    descriptor = _lock_file(Path(path), wait)
    try:
        yield descriptor is not None
    finally:
        if descriptor is not None:
            with suppress(OSError):  # while it is held: what others then lock is another file
                os.unlink(path)
            if _held.pop(Path(path), None) is not None:
                os.close(descriptor)


def _lock_file(path: Path, wait: Callable[[], bool]) -> int | None:
    if fcntl is None:
        return None
    pauses = _pauses()
    while True:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        except OSError:  # read-only, or full
            return None
        got = try_flock(descriptor, path.parent)
        if got and _is_still(path, descriptor):
            _held[path] = descriptor
            return descriptor
        os.close(descriptor)
        if got is None or not wait():
            return None
        if not got:
            time.sleep(next(pauses))


def _is_still(path: Path, descriptor: int) -> bool:
    """Whether the open file is the one of that name: whoever had it has removed its own."""
    try:
        return os.path.samestat(os.stat(path), os.fstat(descriptor))
    except OSError:
        return False


def _pauses() -> Iterator[float]:
    pause, last = _POLL
    while True:
        yield pause
        pause = min(2 * pause, last)


def _forget() -> None:
    """In a forked child: a worker that outlives its killed parent must not keep what it held."""
    for descriptor in _held.values():
        os.close(descriptor)
    _held.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)
