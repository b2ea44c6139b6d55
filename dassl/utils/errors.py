"""A user's mistake ends in one line: what, where, what to do."""

from __future__ import annotations

import difflib
import errno
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class UserError(Exception):
    """A mistake the user can mend; its text is shown as it is, without a traceback."""


@contextmanager
def user_errors() -> Iterator[None]:
    """Turn a `UserError`, or a full disk, into `error: …` on stderr and exit status 2.

    For `with`, or as a decorator.
    """
    try:
        yield
    except UserError as error:
        text = str(error)
    except OSError as error:
        if error.errno not in _FULL:
            raise
        text = (
            f"cannot write {error.filename or 'a file'}: {error.strerror}; make room and give the "
            "same command again"
        )
    else:
        return
    print("error: " + " ".join(text.splitlines()), file=sys.stderr, flush=True)
    raise SystemExit(2)


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
