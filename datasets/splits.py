"""Lists of images: read from split files, written, drawn, and cut into base and new classes.

What is drawn, and in which order, is what the readers of the CoOp family draw; all of it comes from
Python's global `random`, as there.
"""

from __future__ import annotations

import os
import random
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping
from dataclasses import replace
from typing import Any

from dassl.data.datasets import Datum, number_of_base
from dassl.utils import UserError, atomic_write, check_kind, json_text, read_json, suggest

from .annotations import Row, class_folders, image_files
from .tables import local_path

Items = list[Datum]
Lists = tuple[Items, Items, Items]  # train, val, test

SPLIT_SEED = 1  # of a split that is drawn here: the same whichever run comes first
PARTS = ("train", "val", "test")
SUBSAMPLES = ("all", "base", "new")


def read_split(filepath: str, path_prefix: str) -> Lists:
    """Return train, val and test of a split file, paths below `path_prefix`.

    The file holds `{"train"|"val"|"test": [[path, label, class name], …]}`; "val" may be
    absent. Raises UserError naming the entry that is otherwise.
    """
    split = read_json(filepath)
    if not isinstance(split, Mapping) or not {"train", "test"} <= split.keys():
        raise UserError(f"{filepath} has no lists named 'train' and 'test'")
    parts = [(name, split.get(name, [])) for name in PARTS]
    for name, part in parts:
        check_kind(part, list, f"{filepath}: '{name}'")
    return tuple(
        [_datum(entry, path_prefix, f"{filepath}, '{name}'[{i}]") for i, entry in enumerate(part)]
        for name, part in parts
    )


def save_split(train: Items, val: Items, test: Items, filepath: str, path_prefix: str) -> None:
    """Write a split drawn here in the format of `read_split`, marked as drawn."""
    rows = (rows_of(items, path_prefix) for items in (train, val, test))
    split = dict(zip(PARTS, rows, strict=True))
    write_compact({**split, "drawn_with_seed": SPLIT_SEED}, filepath)


def split_trainval(trainval: Items, p_val: float = 0.2) -> tuple[Items, Items]:
    """Return train and val: of each class, shuffled, the first `round(p_val n)` become val.

    Classes come in order of first appearance; draws from `random`.
    """
    places = defaultdict(list)
    for place, item in enumerate(trainval):
        places[item.label].append(place)
    train, val = [], []
    for of_class in places.values():
        random.shuffle(of_class)
        n_val = round(len(of_class) * p_val)
        val.extend(trainval[place] for place in of_class[:n_val])
        train.extend(trainval[place] for place in of_class[n_val:])
    return train, val


def read_and_split_data(
    image_dir: str,
    p_trn: float = 0.5,
    p_val: float = 0.2,
    ignored: Collection[str] = (),
    new_cnames: Mapping[str, str] | None = None,
) -> Lists:
    """Return train, val and test drawn from a folder of class folders, by `split_class`."""
    lists: Lists = ([], [], [])
    for label, folder in enumerate(class_folders(image_dir, ignored)):
        class_dir = os.path.join(image_dir, folder)
        items = class_items(class_dir, label, (new_cnames or {}).get(folder, folder))
        extend(lists, split_class(items, class_dir, p_trn, p_val))
    return lists


def split_class(images: Items, where: str, p_trn: float = 0.5, p_val: float = 0.2) -> Lists:
    """Return one class shuffled and cut into `round(p_trn n)`, `round(p_val n)` and the rest.

    Two or three images leave a part empty that way: they go to train and test first, then to
    val. Raises UserError for a single image; `where` says whose.
    """
    if len(images) < 2:
        raise UserError(f"one image only in {where}: a class needs one to train and one to test")
    images = list(images)
    random.shuffle(images)
    n_train, n_val = round(len(images) * p_trn), round(len(images) * p_val)
    if len(images) <= 3:
        n_train, n_val = 1, len(images) - 2
    end = n_train + n_val
    return images[:n_train], images[n_train:end], images[end:]


def subsample_classes(*lists: Items, subsample: str = "all") -> tuple[Items, ...]:
    """Return the lists with the chosen classes only, labels numbered from 0 without a gap.

    "base" is the first ⌈n/2⌉ of the sorted labels in the first list that isn't empty, "new"
    the rest of them, "all" both. Raises UserError for another word.
    """
    if subsample not in SUBSAMPLES:
        raise UserError(
            f"DATASET.SUBSAMPLE_CLASSES is '{subsample}'{suggest(subsample, SUBSAMPLES)}; "
            f"it is one of {', '.join(SUBSAMPLES)}"
        )
    labels = sorted({item.label for item in next(filter(None, lists), [])})
    half = number_of_base(len(labels))
    chosen = {"all": labels, "base": labels[:half], "new": labels[half:]}[subsample]
    if chosen == list(range(len(labels))):
        return lists
    number = {label: new for new, label in enumerate(chosen)}
    return tuple(
        [replace(item, label=number[item.label]) for item in items if item.label in number]
        for items in lists
    )


def class_items(folder: str, label: int, classname: str, class_key: str = "") -> Items:
    """Return the images of one class folder, by name."""
    return [
        Datum(
            impath=os.path.join(folder, name),
            label=label,
            classname=classname,
            class_key=class_key,
        )
        for name in image_files(folder)
    ]


def extend(lists: Lists, more: Lists) -> None:
    """Append to train, val and test what `more` holds of each."""
    for items, part in zip(lists, more, strict=True):
        items.extend(part)


def _datum(entry: Any, folder: str, where: str) -> Datum:
    """Return the item of a split file's entry; labels may be written as strings."""
    try:
        path, label, classname = entry
        number = int(label)
        fine = isinstance(path, str) and isinstance(classname, str) and number == float(label) >= 0
    except (TypeError, ValueError, OverflowError):
        fine = False
    if not fine:
        raise UserError(f"{where} is {entry!r}; expected [path, label from 0, class name]")
    path = os.path.join(folder, local_path(path, folder))
    return Datum(impath=path, label=number, classname=classname)


def rows_of(items: Iterable[Datum], folder: str) -> list[Row]:
    """Return `items` as a split file has them, paths relative to `folder` if they lie in it."""
    inside = os.path.join(folder, "")
    return [
        (item.impath.removeprefix(inside).replace(os.sep, "/"), item.label, item.classname)
        for item in items
    ]


def write_compact(content: Mapping[str, Any], path: str) -> None:
    """Write JSON in one line, whole or not at all: these lists have thousands of rows."""
    with atomic_write(path) as file:
        file.write(json_text(content))
