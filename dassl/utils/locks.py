"""One process per folder."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from .errors import UserError, is_disk_error
from .storage import mkdir_if_missing

try:
    import fcntl
except ImportError:  # not a POSIX system: no flock, so nothing is held
    fcntl = None

_held: dict[Path, int] = {}  # folder -> file descriptor


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
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        raise UserError(
            f"the folder {folder} is in use by another run; wait for it or choose another"
        ) from None
    except OSError:
        pass  # a file system without locks: go on as before there were any
    _held[key] = descriptor


def unlock_folder(folder: str | os.PathLike) -> None:
    """Let another process have `folder`."""
    descriptor = _held.pop(Path(folder).resolve(), None)
    if descriptor is not None:
        os.close(descriptor)


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
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            alone = True
        except OSError:
            alone = False
        yield alone
    finally:
        os.close(descriptor)


def _forget() -> None:
    """In a forked child: a worker that outlives its killed parent must not keep the folder."""
    for descriptor in _held.values():
        os.close(descriptor)
    _held.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)
