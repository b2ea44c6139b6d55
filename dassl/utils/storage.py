"""Files that are written whole or not at all, JSON, and folders."""

from __future__ import annotations

import errno
import hashlib
import io
import json
import math
import os
import secrets
import shutil
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from .errors import UserError, is_disk_error
from .reading import open_file

_PARTIAL = ".partial-"  # marks a file that is still being written


@contextmanager
def atomic_write(path: str | os.PathLike, mode: str = "w", size: int | None = None) -> Iterator[IO]:
    r"""Open a file that takes the name `path` only once it is completely on disk.

    An exception inside the block leaves `path` untouched; one of the disk names it.

    Args:
        path: its folder is made if missing.
        mode: "wb", or "w" for UTF-8 text. Its lone surrogates, which names of files that aren't
            UTF-8 have, are written as \udcXX; JSON reads that back.
        size: in bytes, if it is known, for what is told of a full disk.
    """
    if mode not in ("w", "wb"):
        raise ValueError(f"mode must be 'w' or 'wb', not {mode!r}")
    path = Path(path)
    partial = path.with_name(f".{path.name}{_PARTIAL}{secrets.token_hex(4)}")
    text = (
        {} if mode == "wb" else {"encoding": "utf-8", "newline": "\n", "errors": "backslashreplace"}
    )
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(partial, mode, **(text if mode == "w" else {})) as file:
            _mark_as_written(file)
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
        _sync_folder(path.parent)
    except BaseException as error:
        with suppress(OSError):
            partial.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.filename in (None, str(partial)):
            error.filename, error.filename2 = str(path), None
            error.not_written = size or 0
        raise


def _mark_as_written(file: IO) -> None:
    """Lock a file as long as its writer lives, for those who remove what killed ones left."""
    with suppress(ImportError, OSError):  # not everywhere
        import fcntl

        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


def _sync_folder(folder: Path) -> None:
    """Have the names of a folder's files on disk too: a rename is in its entries."""
    if os.name != "posix":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # some file systems can't, or needn't
            raise
    finally:
        os.close(descriptor)


def write_tensors(value: Any, path: str | os.PathLike) -> None:
    """Write tensors and containers of them with `torch.save`, whole or not at all.

    Raises OSError where the disk is full: torch.save, writing to the file itself, hides that.
    """
    import torch

    buffer = io.BytesIO()
    torch.save(value, buffer)
    write_bytes(buffer.getbuffer(), path)


def write_bytes(content: bytes | memoryview, path: str | os.PathLike) -> None:
    """Write bytes, whole or not at all."""
    with atomic_write(path, "wb", size=len(content)) as file:
        file.write(content)


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
    text = json_text(obj, indent=4)
    with atomic_write(path, size=len(text)) as file:
        file.write(text + "\n")


def json_text(obj: Any, indent: int | None = None) -> str:
    """Return `obj` as JSON. Raises UserError for an infinite number or NaN, which JSON lacks."""
    try:
        return json.dumps(obj, indent=indent, ensure_ascii=False, allow_nan=False)
    except ValueError:
        raise UserError(f"{_where_infinite(obj)} is infinite or NaN: nothing is written") from None


def _where_infinite(value: Any, where: str = "") -> str:
    """Return where in nested values the first number is that isn't finite, as "a.b.0"; else ""."""
    if isinstance(value, float) and not math.isfinite(value):
        return where or "a number"
    pairs = value.items() if isinstance(value, dict) else ()
    pairs = enumerate(value) if isinstance(value, (list, tuple)) else pairs
    found = (_where_infinite(item, f"{where}.{key}".lstrip(".")) for key, item in pairs)
    return next(filter(None, found), "")


def mkdir_if_missing(folder: str | os.PathLike) -> None:
    """Make `folder` and its parents."""
    try:
        os.makedirs(folder, exist_ok=True)
    except OSError as error:
        if is_disk_error(error):
            raise
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
