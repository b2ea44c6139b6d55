"""Tensors kept on disk by what they were computed from, shared by all processes."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .errors import UserError
from .storage import partial_files, write_tensors

if TYPE_CHECKING:
    import torch

_NAME = re.compile(r"[0-9a-f]{64}\.pt")  # of a file of this cache; others in the folder stay
_ABANDONED = 3600  # seconds after which a file that is still being written belongs to nobody


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

    def _place(self, key: dict[str, Any]) -> tuple[str, Path]:
        text = json.dumps(key, sort_keys=True)
        return text, self.folder / f"{hashlib.sha256(text.encode()).hexdigest()}.pt"

    def _make_room(self) -> None:
        """Remove the files used longest ago until the rest fits."""
        for path in partial_files(self.folder):
            if time.time() - _status(path)[0] > _ABANDONED:
                _ignoring_errors(path.unlink)
        own = (path for path in self.folder.iterdir() if _NAME.fullmatch(path.name))
        entries = sorted((*_status(path), path) for path in own)
        total = sum(size for _, size, _ in entries)
        for _, size, path in entries:
            if total <= self.max_bytes:
                break
            _ignoring_errors(path.unlink)
            total -= size


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
