"""One's own table of images: path, class and, where it is given, split.

Tables come out of many programs: columns are apart by commas, semicolons or tabs, paths may be
written as Windows writes them.
"""

from __future__ import annotations

import csv
import io
import os
from collections import defaultdict
from collections.abc import Hashable, Iterable, Sequence
from typing import TypeVar

from dassl.data.datasets import Datum
from dassl.utils import UserError, read_text
from dassl.utils.contents import content_digest

# What a split may be called in a table, and a folder around class folders: train, val, test.
SPLITS = {"train": 0, "training": 0, "val": 1, "valid": 1, "validation": 1, "test": 2, "testing": 2}
COLUMNS = {
    "path": ("path", "image", "file", "filename", "filepath", "image_path"),
    "class": ("class", "label", "classname", "class_name", "category"),
    "split": ("split", "set", "part", "subset"),
}
SEPARATORS = (",", ";", "\t")
_Image = TypeVar("_Image", bound=Hashable)
TableRow = tuple[str, str, str]  # path, class, split ("" where there is none)


def read_table(path: str) -> list[TableRow]:
    """Return the rows of a table.

    Its first row names the columns, or they are path, class and split in this order. Raises
    UserError for a row without path or class, and for images that have several classes each.
    """
    rows = _rows(path)
    header = [cell.lower() for cell in rows[0]] if rows else []
    at = _columns(header)
    if at["path"] is None or at["class"] is None:
        at = {"path": 0, "class": 1, "split": 2}
    else:
        del rows[0]
    table = [tuple(_cell(row, at[column]) for column in COLUMNS) for row in rows]
    if not table or not all(image and name for image, name, _ in table):
        raise UserError(f"{path}: every row must hold a path, a class and, if given, a split")
    folder = os.path.dirname(path)
    read = [(local_path(image, folder), name, part.lower()) for image, name, part in table]
    _refuse_several_labels(read, path)
    return read


def has_split(table: list[TableRow], path: str) -> bool:
    """Return whether the table gives the split. Raises UserError if it does for some rows only."""
    parts = {part for _, _, part in table}
    odd = sorted(parts - {"", *SPLITS})
    if odd:
        raise UserError(f"{path}: unknown split '{odd[0]}'; it is train, val or test")
    if "" in parts and len(parts) > 1:
        raise UserError(f"{path}: some rows have no split; give it for all rows or for none")
    return "" not in parts


def local_path(path: str, folder: str) -> str:
    r"""Return a listed path with this system's separators: `a\b.jpg` is `a/b.jpg`.

    A file of that very name below `folder` keeps it: elsewhere a backslash is a letter.
    """
    if "\\" not in path or os.path.lexists(os.path.join(folder, path)):
        return path
    return path.replace("\\", "/")


def said_twice(
    train: Sequence[Datum], val: Sequence[Datum], test: Sequence[Datum], read: bool = False
) -> list[str]:
    """Return a line for each way in which one image stands for two things.

    It is in train and in another list, or under two classes. One file under two names is one
    image; with `read` so are two files with the same content.
    """
    lines = []
    one = _same({item.impath for item in (*train, *val, *test)}, read)
    trained = {one[item.impath] for item in train}
    for name, items in (("val", val), ("test", test)):
        both = [item.impath for item in items if one[item.impath] in trained]
        if both and items is not train:
            lines.append(
                f"{len(both):,} of {len(items):,} {name} images are in train too, first {both[0]}: "
                "accuracies on them are too good"
            )
    everything = (*train, *val, *test)
    classes = _classes_of((one[item.impath], item.classname) for item in everything)
    if several := [which for which, names in classes.items() if len(names) > 1]:
        first = next(item.impath for item in everything if one[item.impath] == several[0])
        names = " and ".join(sorted(classes[several[0]]))
        lines.append(f"{len(several):,} images have two classes, first {first}: {names}")
    return lines


def said_of_classes(
    train: Sequence[Datum], val: Sequence[Datum], test: Sequence[Datum]
) -> list[str]:
    """Return a line for each way in which the classes are less than they seem."""
    lines = []
    classes = {item.label for item in (*train, *val, *test)}
    tested = {item.label for item in test}
    if len(classes) == 1:
        lines.append("there is one class only: every prediction is right")
    if missing := sorted(classes - tested):
        names = {item.label: item.classname for item in (*train, *val)}
        lines.append(
            f"{len(missing)} of {len(classes)} classes have no test images, first "
            f"'{names[missing[0]]}'"
        )
    if val and test and val is test:
        lines.append("no test images: val is tested on, too")
    return lines


def _same(paths: Iterable[str], read: bool) -> dict[str, Hashable]:
    """By path which image it is: the file, however it is linked, or with `read` its content."""
    found: dict[str, Hashable] = {}
    by_size: dict[int, list[str]] = defaultdict(list)
    for path in paths:
        try:
            status = os.stat(path)
        except OSError:  # missing: said elsewhere
            found[path] = path
            continue
        found[path] = (status.st_dev, status.st_ino) if status.st_ino else path
        by_size[status.st_size].append(path)
    if read:
        for alike in by_size.values():
            if len(alike) > 1:
                found |= {path: content_digest([path]) for path in alike}
    return found


def _rows(path: str) -> list[list[str]]:
    """The rows, by the separator that finds the named columns, or else two or three of them."""
    text = read_text(path)
    readings = []
    for separator in SEPARATORS:
        try:
            reading = csv.reader(io.StringIO(text, newline=""), delimiter=separator)
            rows = [[cell.strip() for cell in row] for row in reading]
        except csv.Error as error:
            raise UserError(f"{path} is not a CSV table: {error}") from None
        readings.append([row for row in rows if any(row)])
    for rows in readings:
        at = _columns([cell.lower() for cell in rows[0]] if rows else [])
        if at["path"] is not None and at["class"] is not None:
            return rows
    for rows in readings:
        if all(2 <= len(row) <= 3 for row in rows):
            return rows
    return readings[0]


def _columns(header: Sequence[str]) -> dict[str, int | None]:
    return {
        column: next((header.index(name) for name in names if name in header), None)
        for column, names in COLUMNS.items()
    }


def _cell(row: list[str], column: int | None) -> str:
    return row[column] if column is not None and column < len(row) else ""


def _classes_of(pairs: Iterable[tuple[_Image, str]]) -> dict[_Image, set[str]]:
    classes: dict[_Image, set[str]] = defaultdict(set)
    for image, name in pairs:
        classes[image].add(name)
    return classes


def _refuse_several_labels(table: list[TableRow], path: str) -> None:
    classes = _classes_of((image, name) for image, name, _ in table)
    several = [image for image, names in classes.items() if len(names) > 1]
    if 2 * len(several) > len(classes):
        raise UserError(
            f"{path} has several classes for {len(several):,} of {len(classes):,} images, first "
            f"{several[0]}: a table of multi-label images, where one class each is expected"
        )
