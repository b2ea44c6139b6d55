"""Getting one file: from HTTPS with resume, from Google Drive, or put there by hand; verified."""

from __future__ import annotations

import email.utils
import hashlib
import http.client
import inspect
import os
import shutil
import socket
import sys
import tarfile
import time
import urllib.error
import urllib.request
import zipfile
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

from tqdm import tqdm

from dassl.utils import UserError, is_disk_error, read_json, write_json

from .sources import Mirror

CHUNK = 1 << 20
RECORD = "checksums.json"  # in the downloads folder: what came, from where
HEADERS = {"User-Agent": "dept-prepare-data/1.0", "Accept-Encoding": "identity"}
TRY_AGAIN = {408, 425, 429, 500, 502, 503, 504}


class FetchError(Exception):
    """A mirror did not give the file; the text says why."""


@dataclass(frozen=True)
class Options:
    """How long a server may stay silent, and how often it is asked again, in seconds and times."""

    timeout: float = 30.0
    retries: int = 3
    pause: float = 2.0  # before the first repetition; doubles


def fetch(mirror: Mirror, root: Path, downloads: Path, options: Options) -> Path:
    """Return the file of `mirror` in `downloads`, fetched if it isn't there, verified.

    A file that a person put there under its name is taken as if it had been fetched. Raises
    FetchError if the mirror doesn't give it and OSError if the disk is full.
    """
    downloads.mkdir(parents=True, exist_ok=True)
    target = downloads / mirror.file_name
    if target.is_file():
        wrong = _what_is_wrong(target, mirror)
        if not wrong:
            return target
        raise FetchError(f"{target} {wrong}; delete it and run again")
    kind, _, rest = mirror.url.partition(":")
    if kind == "hand":
        raise FetchError("its terms have to be accepted there: fetch it by hand")
    part = downloads / f"{target.name}.{_short_hash(mirror.url)}.part"
    try:
        if kind == "root":
            part = _copy(root / rest, part)
        elif kind == "gdrive":
            _from_drive(rest, part, options)
        else:
            _from_http(mirror, part, options)
    except OSError as error:
        if is_disk_error(error):
            error.filename = error.filename or str(part)
            raise
        raise FetchError(str(error)) from None
    wrong = _what_is_wrong(part, mirror)
    if wrong:
        forget(part)
        raise FetchError(f"what came {wrong}")
    os.replace(part, target)
    forget(part)
    _record(downloads, target, mirror)
    return target


def forget(part: Path) -> None:
    """Delete an unfinished download and the note on it."""
    part.unlink(missing_ok=True)
    _note_path(part).unlink(missing_ok=True)


def _copy(source: Path, part: Path) -> Path:
    if not source.is_file():
        raise FetchError(f"no {source} yet")
    shutil.copyfile(source, part)
    return part


# ------------------------------------------------------------ HTTPS


def _from_http(mirror: Mirror, part: Path, options: Options) -> None:
    """Download into `part`, going on where an earlier try stopped."""
    failures, pause = 0, options.pause
    while True:
        before = _size(part)
        try:
            _download_rest(mirror, part, options.timeout)
            return
        except urllib.error.HTTPError as error:
            reason = f"answers {error.code} {error.reason}"
            if error.code not in TRY_AGAIN:
                raise FetchError(reason) from None
        except (TimeoutError, urllib.error.URLError, http.client.HTTPException, _Cut) as error:
            reason = _reason(error)
            if isinstance(getattr(error, "reason", None), socket.gaierror):
                raise FetchError(f"{reason} (no network?)") from None
        except ConnectionError as error:
            reason = f"the connection broke: {error}"
        failures = 1 if _size(part) > before else failures + 1  # it may stumble, if it advances
        if failures > options.retries:
            raise FetchError(f"{reason} ({options.retries + 1} tries)")
        time.sleep(pause)
        pause = min(2 * pause, 60.0)


class _Cut(Exception):
    """The server ended the transfer early."""


def _reason(error: Exception) -> str:
    cause = getattr(error, "reason", error)
    if isinstance(cause, TimeoutError):
        return "stays silent"
    return str(cause) or type(cause).__name__


def _download_rest(mirror: Mirror, part: Path, timeout: float) -> None:
    note = _read_note(part, mirror.url)
    start = _size(part) if note else 0
    request = urllib.request.Request(mirror.url, headers=HEADERS)
    if start:
        request.add_header("Range", f"bytes={start}-")
        request.add_header("If-Range", note["validator"])
    try:
        response = urllib.request.urlopen(request, timeout=timeout)
    except urllib.error.HTTPError as error:
        if error.code == 416 and start:  # nothing follows: it was complete, or is another file now
            if start == note["total"]:
                return
            forget(part)
            raise _Cut("the file changed on the server") from None
        raise
    with response:
        if response.status != 206:
            start = 0
        if response.headers.get_content_type() == "text/html":
            raise FetchError("gives a web page instead of the file")
        length = response.headers.get("Content-Length")
        total = start + int(length) if length else None
        if mirror.size and total and total != mirror.size:
            raise FetchError(f"offers {total:,} bytes, expected {mirror.size:,}")
        _write_note(part, mirror.url, response, total)
        _append(response, part, start, total, mirror.file_name)
        if total and _size(part) < total:
            raise _Cut(f"the transfer stopped at {_size(part):,} of {total:,} bytes")


def _append(
    response: http.client.HTTPResponse, part: Path, start: int, total: int | None, name: str
) -> None:
    with (
        open(part, "ab" if start else "wb") as file,
        tqdm(
            total=total,
            initial=start,
            unit="B",
            unit_scale=True,
            desc=name,
            mininterval=0.5 if sys.stderr.isatty() else 30,
        ) as progress,
    ):
        # read1 gives what has come, so that a stall loses nothing.
        while chunk := response.read1(CHUNK):
            file.write(chunk)
            progress.update(len(chunk))


def _write_note(
    part: Path, url: str, response: http.client.HTTPResponse, total: int | None
) -> None:
    """Note what `part` is the beginning of; without a strong validator it can't be resumed."""
    tag = response.headers.get("ETag", "")
    date = response.headers.get("Last-Modified", "")
    validator = tag if tag and not tag.startswith("W/") else ""
    if not validator and email.utils.parsedate(date):
        validator = date
    if validator:
        write_json({"url": url, "validator": validator, "total": total}, _note_path(part))
    else:
        _note_path(part).unlink(missing_ok=True)


def _read_note(part: Path, url: str) -> dict:
    try:
        note = read_json(_note_path(part), dict)
    except UserError:
        return {}
    return note if note.get("url") == url else {}


def _note_path(part: Path) -> Path:
    return part.with_name(f"{part.name}.json")


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0


# ------------------------------------------------------------ Google Drive


def _from_drive(file_id: str, part: Path, options: Options) -> None:
    """Download with gdown, which knows Google's confirmation pages and resumes by itself."""
    import gdown
    from gdown import exceptions

    known = inspect.signature(gdown.download).parameters
    timeout = {"timeout": options.timeout} if "timeout" in known else {}  # gdown 6
    try:
        path = gdown.download(
            id=file_id, output=str(part), quiet=not sys.stderr.isatty(), resume=True, **timeout
        )
    except OSError as error:  # requests' errors too
        if is_disk_error(error):
            raise
        raise FetchError(f"Google Drive cannot be reached: {_brief(error)}") from None
    except (*_errors_of(exceptions), RuntimeError, ValueError) as error:
        raise FetchError(f"Google Drive refuses (a quota?): {_brief(error)}") from None
    if path is None or not part.is_file():
        raise FetchError("Google Drive gives no file (a quota, or not public)")


def _brief(error: Exception) -> str:
    text = " ".join(str(error).split())
    return text if len(text) <= 160 else f"{text[:160]}…"


def _errors_of(module: ModuleType) -> list[type[Exception]]:
    """Return the exceptions that a module defines; gdown 5 and 6 have different ones."""
    found = vars(module).values()
    return [cls for cls in found if isinstance(cls, type) and issubclass(cls, Exception)]


# ------------------------------------------------------------ verifying


def _what_is_wrong(path: Path, mirror: Mirror) -> str:
    """Return what is wrong with a file, as a phrase, or "" if nothing is."""
    with open(path, "rb") as file:
        head = file.read(512).lstrip().lower()
    if head.startswith((b"<!doctype", b"<html")):
        return "is a web page, not the file (a quota or sign-in page?)"
    if mirror.size and _size(path) != mirror.size:
        return f"has {_size(path):,} bytes, expected {mirror.size:,}"
    if mirror.digest:
        kind, _, expected = mirror.digest.partition(":")
        found = digest(path, kind)
        if found != expected:
            return f"has the {kind} {found}, expected {expected}"
    name = mirror.file_name.lower()
    if name.endswith(".json"):
        try:
            read_json(path)
        except UserError:
            return "is not valid JSON"
    elif is_archive_name(name) and not (zipfile.is_zipfile(path) or tarfile.is_tarfile(path)):
        return "is not an archive"
    return "" if _size(path) else "is empty"


def is_archive_name(name: str) -> bool:
    """Return whether a file of this name should be an archive."""
    return name.lower().endswith((".zip", ".tar", ".tar.gz", ".tgz"))


def digest(path: Path, kind: str = "sha256") -> str:
    """Return a file's digest in hex."""
    state = hashlib.new(kind, usedforsecurity=False)
    with open(path, "rb") as file:
        while chunk := file.read(CHUNK):
            state.update(chunk)
    return state.hexdigest()


def _record(downloads: Path, target: Path, mirror: Mirror) -> None:
    """Note the size and hash of what came, and say so if they were others last time."""
    record = _read_record(downloads)
    kind, _, known = mirror.digest.partition(":")
    sha256 = known if kind == "sha256" else digest(target)
    before = record.get(mirror.url, {}).get("sha256", sha256)
    if before != sha256:
        print(f"note: {mirror.url} gave another file than before, {before}", file=sys.stderr)
    record[mirror.url] = {"file": target.name, "size": _size(target), "sha256": sha256}
    write_json(record, downloads / RECORD)


def _read_record(downloads: Path) -> dict[str, dict]:
    try:
        record = read_json(downloads / RECORD, dict)
    except UserError:
        return {}
    return {url: entry for url, entry in record.items() if isinstance(entry, dict)}


def was_fetched(file: Path) -> bool:
    """Return whether a file in the downloads folder came by `fetch`, not by a person's hand."""
    return any(entry["file"] == file.name for entry in _read_record(file.parent).values())


def _short_hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:8]
