"""Archives into folders, trusting nothing in them."""

from __future__ import annotations

import errno
import gzip
import lzma
import os
import re
import shutil
import stat
import struct
import sys
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import IO

from tqdm import tqdm

from dassl.utils import UserError, open_file, reason

from .fetch import is_archive_name

_DAMAGE = (
    *(tarfile.TarError, zipfile.BadZipFile, gzip.BadGzipFile, zlib.error, lzma.LZMAError),
    *(EOFError, NotImplementedError, RuntimeError, ValueError, OverflowError, struct.error),
)
DEPTH = 3  # how many folders a packer may have put around what is wanted


class UnpackError(Exception):
    """An archive is damaged, or not one to be trusted; the text says why."""


def unpack(archive: Path, folder: Path) -> None:
    """Write the files of a tar or zip archive below `folder`, and nothing else.

    `folder` is an empty one. Nothing lands outside it; a link to a file inside becomes a copy of
    it. Raises UnpackError for other links, devices, paths that lead out, passwords and damage.
    """
    try:
        open_file(archive).close()
        if zipfile.is_zipfile(archive):
            _unpack_zip(archive, folder)
        elif tarfile.is_tarfile(archive):
            _unpack_tar(archive, folder)
        else:
            raise UnpackError(f"{archive.name} is not an archive")
    except _DAMAGE as error:
        raise UnpackError(f"{archive.name} is damaged: {reason(error)}") from None
    except OSError as error:
        if error.errno not in (None, errno.EINVAL):  # of the disk, not of a place before the file
            raise
        raise UnpackError(f"{archive.name} is damaged: {reason(error)}") from None
    except UserError as error:
        raise UnpackError(str(error)) from None


def _unpack_tar(archive: Path, folder: Path) -> None:
    room = _Room(folder)
    with tarfile.open(archive) as tar:
        for member in _progress(tar, archive):
            target = _target(folder, member.name)
            if member.isdir():
                _make_folder(target, member.name)
            elif member.isfile() or member.islnk() or member.issym():
                if not member.isfile():
                    _require_inside(folder, member)
                _require_name(target, folder, member.name)
                member = _filtered(member, folder)
                with _content(tar, member) as content:
                    room.take(getattr(content, "raw", content).size)
                    _write(content, target, member.name)
            else:
                raise UnpackError(f"'{member.name}' is a device or pipe")
        # The end of the archive isn't the end of the file: there is gzip's checksum.
        while tar.fileobj.read(1 << 20):
            pass


def _filtered(member: tarfile.TarInfo, folder: Path) -> tarfile.TarInfo:
    """Return what the standard library lets through too: links, which become copies here, as well.

    Raises UnpackError for the rest.
    """
    try:
        return tarfile.data_filter(member, str(folder))
    except tarfile.FilterError as error:
        raise UnpackError(f"'{member.name}' is not to be trusted: {error}") from None


class _Room:
    """What may still be written: an archive of a megabyte can hold a full disk."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.left = shutil.disk_usage(folder).free

    def take(self, size: int) -> None:
        """Raise UnpackError if there is no room for `size` bytes more."""
        if size > self.left:
            raise UnpackError(
                f"it needs {size:,} bytes more, {self.left:,} are free in {self.folder}"
            )
        self.left -= size


def _require_inside(folder: Path, member: tarfile.TarInfo) -> None:
    """Raise UnpackError if a link leads out; hard links count from the archive's top."""
    base = PurePosixPath(member.name).parent if member.issym() else PurePosixPath()
    _target(folder, os.path.normpath(str(base / member.linkname)), f"the link '{member.name}'")


@contextmanager
def _content(tar: tarfile.TarFile, member: tarfile.TarInfo) -> Iterator[IO[bytes]]:
    try:
        content = tar.extractfile(member)
    except (KeyError, RecursionError):
        content = None
    if content is None:
        raise UnpackError(f"'{member.name}' links to no file of the archive")
    with content:
        yield content


def _unpack_zip(archive: Path, folder: Path) -> None:
    with zipfile.ZipFile(archive) as packed:
        members = packed.infolist()
        _Room(folder).take(sum(member.file_size for member in members))
        for member in _progress(members, archive):
            target = _target(folder, member.filename)
            if stat.S_ISLNK(member.external_attr >> 16):
                raise UnpackError(f"'{member.filename}' is a link")
            if member.flag_bits & 1:
                raise UnpackError(f"'{member.filename}' needs a password")
            if member.is_dir():
                _make_folder(target, member.filename)
            else:
                _require_name(target, folder, member.filename)
                with packed.open(member) as content:
                    _write(content, target, member.filename)


def _target(folder: Path, name: str, what: str = "") -> Path:
    """Return where a member goes. Raises UnpackError if its name leads out of `folder`."""
    if not name:
        raise UnpackError("it holds a file without a name")
    plain = name.replace("\\", "/")
    path = PurePosixPath(plain)
    if path.is_absolute() or ".." in path.parts or ":" in plain.partition("/")[0] or "\0" in name:
        raise UnpackError(f"{what or repr(name)} leads out of the folder")
    if len(os.fsencode(plain)) > 2048 or any(len(os.fsencode(p)) > 255 for p in path.parts):
        raise UnpackError(f"the name '{plain[:40]}…' is longer than a file's can be")
    return folder.joinpath(*path.parts)


def _require_name(target: Path, folder: Path, name: str) -> None:
    if target == folder:
        raise UnpackError(f"it holds a file without a name ({name!r})")


def _make_folder(target: Path, name: str) -> None:
    try:
        target.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError):
        raise UnpackError(f"'{name}' comes both as a file and as a folder") from None


def _write(content: IO[bytes], target: Path, name: str) -> None:
    _make_folder(target.parent, name)
    try:
        with open(target, "wb") as file:
            shutil.copyfileobj(content, file, 1 << 20)
    except IsADirectoryError:
        raise UnpackError(f"'{name}' comes both as a file and as a folder") from None


def _progress(members: object, archive: Path) -> tqdm:
    interval = 0.5 if sys.stderr.isatty() else 30
    return tqdm(members, unit=" files", desc=f"unpacking {archive.name}", mininterval=interval)


# ------------------------------------------------------------ layout


def place(unpacked: Path, folder: Path, contents: tuple[str, ...]) -> bool:
    """Move what was unpacked to `folder`, whatever folders the packer put around it.

    What belongs there is the uppermost folder that holds all of `contents`; archives inside the
    archive are unpacked to find it. Files that are there already stay. Returns whether it worked.
    """
    found = _find(unpacked, contents)
    if found is None and _unpack_inner(unpacked):
        found = _find(unpacked, contents)
    if found is None:
        return False
    _merge(found, folder)
    return True


def _find(top: Path, contents: tuple[str, ...]) -> Path | None:
    level = [top]
    for _ in range(DEPTH + 1):
        for folder in level:
            if all((folder / name).exists() for name in contents):
                return folder
        level = [sub for folder in level for sub in sorted(folder.iterdir()) if sub.is_dir()]
    return None


def _unpack_inner(top: Path) -> bool:
    """Unpack every archive below `top` in its place; return whether there was one.

    An archive `x.tar` of one folder `x` becomes that folder; one of loose files becomes `x`.
    """
    archives = [path for path in sorted(top.rglob("*")) if is_archive_name(path.name)]
    for archive in archives:
        stem = re.sub(r"\.(zip|tgz|tar(\.gz)?)$", "", archive.name, flags=re.IGNORECASE)
        loose = archive.with_name(f".{archive.name}.unpacked")
        loose.mkdir()
        unpack(archive, loose)
        archive.unlink()
        inner = loose / stem
        _merge(inner if inner.is_dir() else loose, archive.with_name(stem))
        shutil.rmtree(loose, ignore_errors=True)
    return bool(archives)


def _merge(source: Path, target: Path) -> None:
    if not target.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        os.replace(source, target)
    elif source.is_dir() and target.is_dir():
        for path in list(source.iterdir()):
            _merge(path, target / path.name)
