"""Files that are written whole or not at all, JSON, and folders."""

from __future__ import annotations

import hashlib
import io
import json
import os
import secrets
import shutil
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from .errors import UserError
from .reading import open_file

_PARTIAL = ".partial-"  # marks a file that is still being written


@contextmanager
def atomic_write(path: str | os.PathLike, mode: str = "w") -> Iterator[IO]:
    """Open a file that takes the name `path` only once it is completely on disk.

    `mode` is "w" (UTF-8 text) or "wb". An exception inside the block leaves `path` untouched; one
    of the disk names it.
    """
    if mode not in ("w", "wb"):
        raise ValueError(f"mode must be 'w' or 'wb', not {mode!r}")
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}{_PARTIAL}{secrets.token_hex(4)}")
    text = {} if mode == "wb" else {"encoding": "utf-8", "newline": "\n"}
    try:
        with open(partial, mode, **text) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except BaseException as error:
        partial.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.filename is None:
            error.filename = str(path)
        raise


def write_tensors(value: Any, path: str | os.PathLike) -> None:
    """Write tensors and containers of them with `torch.save`, whole or not at all.

    Raises OSError where the disk is full: torch.save, writing to the file itself, hides that.
    """
    import torch

    buffer = io.BytesIO()
    torch.save(value, buffer)
    with atomic_write(path, "wb") as file:
        file.write(buffer.getbuffer())


def atomic_copy(source: str | os.PathLike, target: str | os.PathLike) -> None:
    """Copy a file's content, whole or not at all."""
    with open(source, "rb") as content, atomic_write(target, "wb") as file:
        shutil.copyfileobj(content, file)


def partial_files(folder: str | os.PathLike) -> list[Path]:
    """Return what is being written in `folder` itself, or was when its process was killed."""
    return list(Path(folder).glob(f".*{_PARTIAL}*"))


def remove_partial_files(folder: str | os.PathLike) -> None:
    """Delete what a killed process had not finished writing in `folder` itself."""
    for partial in partial_files(folder):
        partial.unlink(missing_ok=True)


def write_json(obj: Any, path: str | os.PathLike) -> None:
    """Write `obj` as indented JSON, whole or not at all."""
    with atomic_write(path) as file:
        json.dump(obj, file, indent=4, ensure_ascii=False)
        file.write("\n")


def mkdir_if_missing(folder: str | os.PathLike) -> None:
    """Make `folder` and its parents."""
    try:
        os.makedirs(folder, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot make the folder {folder}: {error.strerror}") from None


def listdir_nohidden(folder: str | os.PathLike, sort: bool = False) -> list[str]:
    """Return the names in `folder` that do not start with a dot."""
    try:
        names = [name for name in os.listdir(folder) if not name.startswith(".")]
    except FileNotFoundError:
        raise UserError(f"no such folder: {folder}") from None
    return sorted(names) if sort else names


def check_isfile(path: str | os.PathLike) -> bool:
    """Return whether `path` is a file; warn if it is not."""
    found = os.path.isfile(path)
    if not found:
        warnings.warn(f"no file found at {path}", stacklevel=2)
    return found


def missing_files(paths: Iterable[str]) -> list[str]:
    """Return those of `paths` that don't exist.

    Each folder is listed once: far cheaper than a look at each of its files.
    """
    present: dict[str, frozenset[str]] = {}
    missing = []
    for path in paths:
        folder, name = os.path.split(path)
        if folder not in present:
            found = os.listdir(folder or ".") if os.path.isdir(folder or ".") else ()
            present[folder] = frozenset(found)
        if name not in present[folder]:
            missing.append(path)
    return missing


_sha256: dict[tuple[str, int, int], str] = {}


def file_sha256(path: str | os.PathLike) -> str:
    """Return a file's SHA-256 in hex, read once per process as long as the file is unchanged."""
    try:
        status = os.stat(path)
        key = (os.path.realpath(path), status.st_size, status.st_mtime_ns)
        if key not in _sha256:
            digest = hashlib.sha256()
            with open_file(path) as file:
                while chunk := file.read(1 << 20):
                    digest.update(chunk)
            _sha256[key] = digest.hexdigest()
    except FileNotFoundError:
        raise UserError(f"no such file: {path}") from None
    return _sha256[key]
