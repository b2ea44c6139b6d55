"""Tensors kept on disk by what they were computed from, shared by all processes."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .errors import UserError
from .locks import hold_file, try_flock
from .storage import partial_files, write_tensors

if TYPE_CHECKING:
    import torch

_NAME = re.compile(r"[0-9a-f]{64}\.pt")  # of a file of this cache; others in the folder stay
# Seconds after which a file that is still being written, and isn't locked, belongs to nobody; and
# where there are no locks.
_ABANDONED, _ABANDONED_UNLOCKED = 60, 3600
_mine: set[Path] = set()  # the locks of this process


class TensorCache:
    """A folder of tensors, the least recently used of which make room for new ones.

    A key says everything the tensor depends on; what was stored under another key, or is not whole,
    is never returned. Reading and writing may fail as they like: then there is no cache.

    Args:
        folder: made when first needed.
        max_bytes: of all files together.
    """

    def __init__(self, folder: str | os.PathLike, max_bytes: int) -> None:
        self.folder = Path(folder)
        self.max_bytes = max_bytes

    def get(self, key: dict[str, Any]) -> torch.Tensor | None:
        """Return the tensor stored under `key` (plain values), if there is one."""
        from .tensor_files import read_tensors

        text, path = self._place(key)
        if not path.exists():
            return None
        try:
            content = read_tensors(path)
            tensor = content["tensor"]
            sound = content["key"] == text and content["sha256"] == _sha256(tensor)
        except (UserError, LookupError, TypeError, AttributeError, RuntimeError):
            sound = False  # half a file, or something else
        if not sound:
            _ignoring_errors(path.unlink)
            return None
        _ignoring_errors(os.utime, path)  # used last
        return tensor

    def put(self, key: dict[str, Any], tensor: torch.Tensor) -> bool:
        """Store a tensor; return whether it is there now."""
        if tensor.nbytes > self.max_bytes:
            return False
        text, path = self._place(key)
        tensor = tensor.detach().cpu().contiguous().clone()  # not a view of something larger
        content = {"key": text, "sha256": _sha256(tensor), "tensor": tensor}
        try:
            write_tensors(content, path)
            self._make_room()
        except OSError:  # read-only, or full
            return False
        return path.exists()

    @contextmanager
    def alone(self, key: dict[str, Any], wait: Callable[[], bool]) -> Iterator[bool]:
        """Inside, no other process computes what is stored under `key`.

        Yields whether that is so: not where there are no locks, nor where another process has it
        and `wait`, asked again and again, says no. A process that holds a key never waits for
        another one, so that no two wait for each other.
        """
        path = self._place(key)[1].with_suffix(".lock")
        with hold_file(path, lambda: not _mine and wait()) as held:
            if held:
                _mine.add(path)
            try:
                yield held
            finally:
                if held:
                    _mine.discard(path)

    def _place(self, key: dict[str, Any]) -> tuple[str, Path]:
        text = json.dumps(key, sort_keys=True)
        return text, self.folder / f"{hashlib.sha256(text.encode()).hexdigest()}.pt"

    def _make_room(self) -> None:
        """Remove the files used longest ago until the rest fits."""
        for path in partial_files(self.folder):
            if _is_abandoned(path):
                _ignoring_errors(path.unlink)
        own = (path for path in self.folder.iterdir() if _NAME.fullmatch(path.name))
        entries = sorted((*_status(path), path) for path in own)
        total = sum(size for _, size, _ in entries)
        for _, size, path in entries:
            if total <= self.max_bytes:
                break
            _ignoring_errors(path.unlink)
            total -= size


def _is_abandoned(partial: Path) -> bool:
    """Whether whoever was writing this file has ended: `atomic_write` locks it until then."""
    age = time.time() - _status(partial)[0]
    if age <= _ABANDONED:
        return False
    try:
        with open(partial, "rb+") as file:
            free = try_flock(file, partial)
    except OSError:
        return False
    return age > _ABANDONED_UNLOCKED if free is None else free


def _ignoring_errors(call: Callable[..., object], *arguments: object) -> None:
    """Call what may fail: another process was faster, or the folder can't be written to."""
    with contextlib.suppress(OSError):
        call(*arguments)


def _status(path: Path) -> tuple[float, int]:
    """When a file was last used, and its size; (now, 0) if another process has removed it."""
    try:
        status = path.stat()
    except OSError:
        return time.time(), 0
    return status.st_mtime, status.st_size


def _sha256(tensor: torch.Tensor) -> str:
    import torch

    digest = hashlib.sha256(f"{tensor.dtype} {tuple(tensor.shape)} ".encode())
    digest.update(tensor.view(torch.uint8).numpy())
    return digest.hexdigest()
