"""One data set from its sources to the layout that its reader reads."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from dassl.utils import atomic_copy

from .fetch import FetchError, Options, fetch, is_archive_name, was_fetched
from .sources import Mirror, Source, SourcePart
from .unpack import UnpackError, place, unpack

UNPACKING = ".unpacking"  # below the data folder; a killed run may leave it


class Preparation:
    """What one command works with: the data folder, the downloads, how to fetch."""

    def __init__(self, root: Path, downloads: Path, options: Options, keep: bool) -> None:
        self.root = root
        self.downloads = downloads
        self.options = options
        self.keep = keep  # downloads that are in their place

    def prepare(self, name: str, source: Source) -> list[str]:
        """Get what is missing of a data set; return what could not be had, for a person to read.

        Whatever was had stays, so that the next call goes on from there. The caller holds the data
        folder: what a killed process left unpacked is removed.
        """
        shutil.rmtree(self.root / UNPACKING, ignore_errors=True)
        failures: dict[SourcePart, list[str]] = {}
        for part in source.parts:
            if not self.is_there(part):
                print(f"{name}: {part.folder}: {', '.join(part.contents)}")
                failures[part] = self._try(part.mirrors, part.folder, part.contents)
        self._try_bundles(name, source, failures)
        return [
            self._explain(name, part, reasons, source)
            for part, reasons in failures.items()
            if not self.is_there(part)
        ]

    def is_there(self, part: SourcePart) -> bool:
        """Return whether the part's files are where they belong."""
        return all((self.root / part.folder / name).exists() for name in part.contents)

    def _try_bundles(
        self, name: str, source: Source, failures: dict[SourcePart, list[str]]
    ) -> None:
        """Get missing images, and what comes with them, from an archive of the whole folder.

        Not for a missing list alone: nobody wants gigabytes for it unasked.
        """
        missing = [
            part
            for part in source.parts
            if part.needed
            and not self.is_there(part)
            and any(is_archive_name(mirror.file_name) for mirror in part.mirrors)
        ]
        if not missing or not source.bundles:
            return
        folder = min((part.folder for part in source.parts), key=len)
        wanted = [
            os.path.normpath(os.path.join(os.path.relpath(part.folder, folder), item))
            for part in missing
            for item in part.contents
        ]
        print(f"{name}: trying archives of the whole folder")
        reasons = self._try(source.bundles, folder, tuple(wanted))
        for part in missing:
            failures[part] += reasons

    def _try(
        self, mirrors: tuple[Mirror, ...], folder: str, contents: tuple[str, ...]
    ) -> list[str]:
        """Get `contents` from the first mirror that works; return what failed, or [] if one did."""
        reasons = []
        for mirror in mirrors:
            try:
                file = fetch(mirror, self.root, self.downloads, self.options)
                self._install(file, self.root / folder, contents)
                return []
            except (FetchError, UnpackError) as error:
                print(f"  {address(mirror)}: {error}")
                reasons.append(f"{address(mirror)} ({mirror.file_name}): {error}")
        return reasons

    def _install(self, file: Path, folder: Path, contents: tuple[str, ...]) -> None:
        if not is_archive_name(file.name):
            folder.mkdir(parents=True, exist_ok=True)
            atomic_copy(file, folder / contents[0])
            self._tidy(file)
            return
        unpacking = self.root / UNPACKING
        shutil.rmtree(unpacking, ignore_errors=True)
        unpacking.mkdir()
        try:
            unpack(file, unpacking)
            if not place(unpacking, folder, contents):
                raise UnpackError(f"{file.name} does not hold {', '.join(contents)}")
        except UnpackError:
            os.replace(file, file.with_name(f"{file.name}.unusable"))
            raise
        except OSError as error:
            error.filename = error.filename or str(self.root)
            raise
        finally:
            shutil.rmtree(unpacking, ignore_errors=True)
        self._tidy(file)

    def _tidy(self, file: Path) -> None:
        """Delete a download that is in its place now; what a person put there stays."""
        if not self.keep and was_fetched(file):
            file.unlink()

    def _explain(self, name: str, part: SourcePart, reasons: list[str], source: Source) -> str:
        where = self.root / part.folder
        what = f"{name}: {', '.join(part.contents)} of {where}"
        if not part.needed:
            return f"{what} could not be had; runs with the published split don't need it"
        tried = "".join(f"\n    {reason}" for reason in reasons)
        return (
            f"{what} could not be had. Tried:{tried}\n"
            f"  Go on by hand: put one of these files into {self.downloads} under the name in "
            "brackets and run the same command again,\n"
            f"  or lay the folder out as docs/datasets.md shows it (homepage: {source.homepage})."
        )


def address(mirror: Mirror) -> str:
    """Return a mirror's address as a person would open it."""
    kind, _, rest = mirror.url.partition(":")
    if kind == "gdrive":
        return f"https://drive.google.com/file/d/{rest}/view"
    return rest if kind in ("hand", "root") else mirror.url
