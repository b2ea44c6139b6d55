"""One's own class folders, walked to the bottom: images, and what is passed over."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Collection, Iterator

from dassl.utils import IMAGE_ENDINGS, UserError

from .annotations import scan

HIDDEN = "hidden"  # what a walk calls files and folders that start with a dot
OUTSIDE = "images outside the class folders"
UPWARDS = "links to a folder above"


def images_below(folder: str, passed: Counter[str]) -> list[str]:
    """Return the images below `folder`, by code point, as paths relative to it apart by "/".

    Folders in it are walked too, links to folders as well, none of them twice, and none that leads
    to a folder above, where other classes are. `passed` counts the files that are no images, by
    their endings.
    """
    paths = [path for path in _files(folder, passed) if _is_image(path, passed)]
    return sorted(os.path.relpath(path, folder).replace(os.sep, "/") for path in paths)


def walk_images(folder: str, passed: Counter[str]) -> list[str]:
    """Return the images of a class folder, as `images_below`.

    Raises UserError if there is no image: a class without one is a half-finished copy.
    """
    here: Counter[str] = Counter()
    names = images_below(folder, here)
    passed += here
    if not names:
        there = describe_passed(here)
        raise UserError(
            f"no images in the class folder {folder}{f' ({there})' if there else ''}; add them or "
            "remove the folder"
        )
    return names


def count_outside(
    folder: str, passed: Counter[str], classes: Collection[str], known: Collection[str] = ()
) -> None:
    """Count in `passed` what lies beside class folders, in none of them.

    classes: the folders that are read. known: names of what isn't passed over, as it is read
    otherwise or was left by runs.
    """
    with scan(folder) as entries:
        others = [e for e in entries if e.name not in classes and e.name not in known]
    for entry in others:
        if entry.name.startswith("."):
            passed[HIDDEN] += 1
        elif entry.is_dir():
            passed[OUTSIDE] += len(images_below(entry.path, passed))
        else:
            passed[OUTSIDE] += _is_image(entry.path, passed)


def images_in(folder: str) -> int:
    """Return how many images lie in `folder` itself."""
    with scan(folder) as entries:
        return sum(entry.is_file() and _is_image(entry.path, Counter()) for entry in entries)


def _is_image(path: str, passed: Counter[str]) -> bool:
    """Whether a file is one, by its name; what isn't is counted in `passed`."""
    image = path.lower().endswith(IMAGE_ENDINGS)
    if not image:
        passed[os.path.splitext(path)[1].lower() or "no ending"] += 1
    return image


def _files(folder: str, passed: Counter[str]) -> Iterator[str]:
    seen = set()
    above = _above(folder)
    for place, folders, files in os.walk(folder, onerror=_fail, followlinks=True):
        here = os.path.realpath(place)
        if here in seen:  # a link upwards would be walked for ever
            folders.clear()
            continue
        if here in above:
            passed[UPWARDS] += 1
            folders.clear()
            continue
        seen.add(here)
        shown = [name for name in files if not name.startswith(".")]
        inside = [name for name in folders if not name.startswith(".")]
        passed[HIDDEN] += len(files) + len(folders) - len(shown) - len(inside)
        folders[:] = sorted(inside)
        yield from (os.path.join(place, name) for name in shown)


def _above(folder: str) -> set[str]:
    """The real paths of the folders that `folder` lies in, by its name and by where it is."""
    found = set()
    for path in (os.path.abspath(folder), os.path.realpath(folder)):
        while (parent := os.path.dirname(path)) != path:
            path = parent
            found.add(os.path.realpath(path))
    return found


def _fail(error: OSError) -> None:
    raise UserError(f"cannot read the folder {error.filename}: {error.strerror}") from None


def describe_passed(passed: Counter[str]) -> str:
    """Return what was passed over in words: "3 files: 2 .txt, 1 hidden"; "" for nothing."""
    total = sum(passed.values())
    parts = ", ".join(f"{n} {ending}" for ending, n in sorted((+passed).items()))
    return f"{total} file{'s' if total > 1 else ''}: {parts}" if total else ""
