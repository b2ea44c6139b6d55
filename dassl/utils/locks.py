"""One process per folder."""

from __future__ import annotations

import os
from pathlib import Path
from types import TracebackType

from .errors import UserError
from .files import mkdir_if_missing

try:
    import fcntl
except ImportError:  # not a POSIX system: there is no flock, and nothing to hold
    fcntl = None


class FolderLock:
    """Holds `<folder>/.lock` until `release`, or until the process ends, however it ends."""

    def __init__(self, folder: str | os.PathLike) -> None:
        self.folder = Path(folder)
        mkdir_if_missing(folder)
        self._file = open(self.folder / ".lock", "a")  # noqa: SIM115 - open as long as it is held
        if fcntl is None:
            return
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            self._file.close()
            raise UserError(
                f"{folder} is in use by another run; wait for it or choose another --output-dir"
            ) from None

    def release(self) -> None:
        """Let another process have the folder."""
        self._file.close()

    def __enter__(self) -> FolderLock:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.release()


def lock_folder(folder: str | os.PathLike) -> FolderLock:
    """Take `folder` for this process. Raises UserError if another holds it."""
    return FolderLock(folder)
