"""What is printed also goes to log.txt.

Not `logging`: what trainers written elsewhere print, libraries' warnings and tracebacks belong
into log.txt too, and public parsers read its lines without a prefix.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from .storage import mkdir_if_missing


class Tee:
    """A text stream that writes to `stream` and to `log`.

    Where the log can't be written (a full disk) that is raised once, naming it; what follows goes
    to the stream alone.
    """

    def __init__(self, stream: IO[str], log: IO[str]) -> None:
        self.stream = stream
        self.log = log

    def write(self, text: str) -> int:
        """Write `text` to both."""
        written = self.stream.write(text)
        self._to_log(self.log.write, text)
        return written

    def flush(self) -> None:
        """Flush both."""
        self.stream.flush()
        self._to_log(self.log.flush)

    def _to_log(self, call: Callable[..., object], *arguments: str) -> None:
        if self.log.closed:
            return
        try:
            call(*arguments)
        except OSError as error:
            error.filename = self.log.name
            with suppress(OSError):
                self.log.close()
            raise

    def __getattr__(self, name: str) -> object:
        return getattr(self.stream, name)  # isatty, encoding, fileno, …


def _open(path: Path, mode: str) -> IO[str]:
    # Line buffered: a killed run leaves its log up to the last line.
    return open(path, mode, buffering=1, encoding="utf-8", errors="backslashreplace")


@contextmanager
def log_to(folder: str | os.PathLike) -> Iterator[None]:
    """Inside, what is printed also goes to the end of `<folder>/log.txt`."""
    mkdir_if_missing(folder)
    with _open(Path(folder) / "log.txt", "a") as log:
        streams = sys.stdout, sys.stderr
        sys.stdout, sys.stderr = (Tee(stream, log) for stream in streams)
        try:
            yield
        finally:
            sys.stdout, sys.stderr = streams


def setup_logger(output: str | os.PathLike | None = None, append: bool = False) -> None:
    """Copy stdout and stderr to a log file, emptied first unless `append`.

    It is `output` if that ends in .txt or .log, else `<output>/log.txt`.
    A second call ends the copying to the first file. None ends it altogether.
    """
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if isinstance(stream, Tee):
            setattr(sys, name, stream.stream)
            stream.log.close()
    if output is None:
        return
    path = Path(output)
    if path.suffix not in (".txt", ".log"):
        path = path / "log.txt"
    mkdir_if_missing(path.parent)
    log = _open(path, "a" if append else "w")
    sys.stdout = Tee(sys.stdout, log)
    sys.stderr = Tee(sys.stderr, log)
