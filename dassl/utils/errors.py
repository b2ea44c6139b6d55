"""A user's mistake ends in one line: what, where, what to do. So does a full disk, or Ctrl-C."""

from __future__ import annotations

import difflib
import errno
import os
import shutil
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

MISTAKE, DISK, CLOSED_PIPE, INTERRUPTED = 2, 1, 141, 130  # exit statuses
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
NOT_FINITE = "the model's scores are infinite or NaN: its training diverged, or PREC is too narrow"
GOES_ON = "the same command goes on from here"


class UserError(Exception):
    """A mistake the user can mend; its text is shown as it is, without a traceback."""


class Terminated(BaseException):
    """SIGTERM came, and what had to be saved is saved. Like KeyboardInterrupt, no Exception."""


@contextmanager
def user_errors(interrupted: str = "interrupted") -> Iterator[None]:
    """Turn what isn't the program's fault into one line on stderr and an exit status.

    `error: …` and 2 for a `UserError` and for a file that can't be read; and 1 for a disk that is
    full or read-only. For Ctrl-C `interrupted` and 130, for SIGTERM "terminated" and 143. Nothing
    and 141 where nobody reads the output any more. For `with`, or as a decorator.
    """
    _escape_what_has_no_encoding()
    try:
        try:
            yield
        finally:
            _flush()
    except UserError as error:
        text, status = f"error: {error}", MISTAKE
    except BrokenPipeError:
        text, status = "", CLOSED_PIPE
    except OSError as error:
        if is_disk_error(error):
            text, status = f"error: {disk_error(error)}", DISK
        elif error.filename is not None:
            text, status = f"error: {os.fsdecode(error.filename)}: {error.strerror}", MISTAKE
        else:
            raise
    except (KeyboardInterrupt, Terminated, Exception) as error:
        ended = _signal_behind(error)
        if ended is None:
            raise
        text, status = interrupted, INTERRUPTED
        if isinstance(ended, Terminated):
            text, status = interrupted.replace("interrupted", "terminated"), ended.args[0]
    else:
        return
    if text:
        with suppress(OSError):
            print(" ".join(text.splitlines()), file=sys.stderr, flush=True)
    _give_up_output()
    raise SystemExit(status)


def _signal_behind(error: BaseException | None) -> BaseException | None:
    """The signal's exception, also where putting things back failed because of it."""
    while error is not None and not isinstance(error, (KeyboardInterrupt, Terminated)):
        error = error.__context__
    return error


def is_disk_error(error: OSError) -> bool:
    """Whether a file couldn't be written: the disk is full, read-only or broken.

    Of what `atomic_write` raises that is known; other errors are those that no reading gives.
    """
    return error.errno in (*_FULL, errno.EROFS) or hasattr(error, "not_written")


def disk_error(error: OSError) -> str:
    """Return a line on a file that couldn't be written: which, why, and how much room there is."""
    name = error.filename or "the output"
    if error.errno not in _FULL:
        return f"cannot write {name}: {error.strerror}"
    room = []
    if size := getattr(error, "not_written", 0):
        room.append(f"{_mib(size)} to write")
    if error.filename and (free := _free(error.filename)) is not None:
        room.append(f"{_mib(free)} free")
    told = f" ({', '.join(room)})" if room else ""
    return f"cannot write {name}: {error.strerror}{told}; make room and give the same command again"


def _mib(size: int) -> str:
    return f"{size / 2**20:.1f} MiB"


def _free(path: str | os.PathLike) -> int | None:
    """The room on the disk of a file that may not be there."""
    for folder in Path(os.fsdecode(path)).absolute().parents:
        with suppress(OSError):
            return shutil.disk_usage(folder).free
    return None


def _escape_what_has_no_encoding() -> None:
    """Have a file name that isn't UTF-8, or a λ on an ASCII terminal, shown escaped."""
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="backslashreplace")


def _flush() -> None:
    """Write what is still to be printed, so that failing is noticed here."""
    if sys.stdout is not None:
        sys.stdout.flush()


def _give_up_output() -> None:
    """Drop what can't be printed: Python would complain about it at its end, in many lines."""
    try:
        _flush()
    except (OSError, ValueError):
        with suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def check_choice(key: str, value: str, choices: Iterable[str]) -> None:
    """Raise UserError unless `value`, of the config's `key`, is one of `choices`."""
    choices = list(choices)
    if value not in choices:
        near = suggest(value, choices)
        raise UserError(f"{key} is {value!r}{near}; choose one of {', '.join(choices)}")


def suggest(name: str, choices: Iterable[str], limit: int = 3) -> str:
    """Return " (did you mean 'x' or 'y'?)" for the names nearest to `name`, or ""."""
    by_lower = {str(choice).lower(): str(choice) for choice in choices}
    close = difflib.get_close_matches(str(name).lower(), by_lower, n=limit)
    if not close:
        return ""
    *others, last = [f"'{by_lower[lower]}'" for lower in close]
    return f" (did you mean {', '.join(others) + ' or ' if others else ''}{last}?)"
