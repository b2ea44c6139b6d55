"""What files hold, as a digest, without reading again what hasn't changed."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from .storage import atomic_write

_THREADS = 8  # hashing and reading release the interpreter


def status_digest(paths: Iterable[str]) -> str | None:
    """Return a digest of where files lie, and of their sizes, times and inodes, in order.

    A file that was replaced under its own name, with its size and modification time kept, has
    another time of status change and another inode. None if one is missing.
    """
    digest = hashlib.sha256()
    for path in paths:
        try:
            status = os.stat(path)
        except OSError:
            return None
        facts = (status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino)
        digest.update(f"{os.path.abspath(path)}\0{facts}\n".encode(errors="surrogateescape"))
    return digest.hexdigest()


def content_digest(paths: Sequence[str], cache: str | os.PathLike | None = None) -> str:
    """Return a SHA-256 (hex) of what files hold, in order; a missing file counts as such.

    Args:
        paths: of files.
        cache: a folder that keeps the digest by `status_digest`; None: nothing is kept.
    """
    status = status_digest(paths) if cache is not None and paths else None
    kept = Path(cache) / status if status else None
    if kept is not None:
        try:
            text = kept.read_text(encoding="ascii")
        except (OSError, UnicodeDecodeError):
            text = ""
        if len(text) == 64 and set(text) <= set("0123456789abcdef"):
            return text
    digest = hashlib.sha256()
    with ThreadPoolExecutor(_THREADS) as pool:
        for one in pool.map(_file_digest, paths, chunksize=64):
            digest.update(one)
    if kept is not None and status_digest(paths) == status:
        _keep(kept, digest.hexdigest())
    return digest.hexdigest()


def _file_digest(path: str) -> bytes:
    try:
        with open(path, "rb") as file:
            return hashlib.sha256(file.read()).digest()
    except OSError:
        return b"missing"


def _keep(path: Path, digest: str) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(path) as file:
            file.write(digest)
    except OSError:
        return  # a read-only or full disk: it is read again next time
