"""One's own class folders, walked to the bottom: images, and what is passed over."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator

from dassl.utils import IMAGE_ENDINGS, UserError

from .annotations import scan

HIDDEN = "hidden"  # what a walk calls files and folders that start with a dot
OUTSIDE = "images outside the class folders"


def walk_images(folder: str, passed: Counter[str]) -> list[str]:
    """Return the images below `folder`, by code point, as paths relative to it apart by "/".

    Folders in it are walked too, links to folders as well, none of them twice. `passed` counts
    the files that are no images, by their endings.

    Raises UserError if there is no image: a class without one is a half-finished copy.
    """
    names = []
    for path in _files(folder, passed):
        if path.lower().endswith(IMAGE_ENDINGS):
            names.append(os.path.relpath(path, folder).replace(os.sep, "/"))
        else:
            passed[os.path.splitext(path)[1].lower() or "no ending"] += 1
    if not names:
        raise UserError(f"no images in the class folder {folder}; add them or remove the folder")
    return sorted(names)


def count_outside(folder: str, passed: Counter[str]) -> None:
    """Count in `passed` the images that lie beside class folders, in none of them."""
    with scan(folder) as entries:
        passed[OUTSIDE] += sum(
            entry.is_file() and entry.name.lower().endswith(IMAGE_ENDINGS) for entry in entries
        )


def _files(folder: str, passed: Counter[str]) -> Iterator[str]:
    seen = set()
    for place, folders, files in os.walk(folder, onerror=_fail, followlinks=True):
        here = os.path.realpath(place)
        if here in seen:  # a link upwards would be walked for ever
            folders.clear()
            continue
        seen.add(here)
        shown = [name for name in files if not name.startswith(".")]
        inside = [name for name in folders if not name.startswith(".")]
        passed[HIDDEN] += len(files) + len(folders) - len(shown) - len(inside)
        folders[:] = sorted(inside)
        yield from (os.path.join(place, name) for name in shown)


def _fail(error: OSError) -> None:
    raise UserError(f"cannot read the folder {error.filename}: {error.strerror}") from None


def describe_passed(passed: Counter[str]) -> str:
    """Return what was passed over in words: "3 files: 2 .txt, 1 hidden"; "" for nothing."""
    total = sum(passed.values())
    parts = ", ".join(f"{n} {ending}" for ending, n in sorted((+passed).items()))
    return f"{total} file{'s' if total > 1 else ''}: {parts}" if total else ""
