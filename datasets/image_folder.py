"""A data set of one's own, without code: class folders, a table, or a split file."""

from __future__ import annotations

import os
from collections import Counter, defaultdict
from dataclasses import replace

from dassl.data.datasets import DATASET_REGISTRY, Datum
from dassl.utils import UserError, read_json

from .annotations import class_folders, has_folders, read_lines, scan
from .base import ImageDataset
from .splits import Items, Lists, extend, split_class
from .tables import SPLITS, has_split, read_table, said_of_classes, said_twice
from .walking import count_outside, describe_passed, images_in, walk_images

TABLE = "labels.csv"
# What a file given as the table is, by its ending.
NO_TABLES = {
    "an archive: unpack it, and say --root FOLDER": (
        *(".zip", ".tar", ".tgz", ".gz", ".bz2", ".xz", ".zst", ".7z", ".rar"),
    ),
    "a spreadsheet: save it as CSV": (".xlsx", ".xls", ".ods"),
}
# Beside class folders: what is read, and what runs leave there.
KNOWN = (TABLE, "split.json", "classnames.txt", "template.txt", "split_fewshot", ".cache")


@DATASET_REGISTRY.register()
class ImageFolder(ImageDataset):
    """The images below DATASET.ROOT itself, in the first of these forms that is there.

    - ROOT is a `.csv` or a `.json` file: that table or split file, paths relative to its folder.
    - `labels.csv`: columns path, class and, if the split is given, split (train, val, test).
    - `split.json`: `{"train": [[path, label, class name], …], "val": …, "test": …}`.
    - `train/`, `val/`, `test/` with class folders in each; without test, val is the test set;
      `test/` alone is a set to evaluate on.
    - class folders: 50/20/30 % of each class, drawn once and saved as `split.json`.

    A class's images may lie in folders inside its own. What is passed over is counted in a line.

    Optional beside them: `classnames.txt`, lines of a class folder and its display name, apart by a
    tab or the first space; `template.txt`, the prompt template in one line.
    """

    split_file = "split.json"
    how_to_get = "say --root DIR, a folder of class folders; see docs/datasets.md"

    def locate(self, root: str) -> None:
        """As every reader's, where `root` may be a file; also reads table and template.

        Raises UserError for a damaged table or template.
        """
        self._passed: Counter[str] = Counter()
        path = os.path.abspath(os.path.expanduser(root)) if root else ""
        table = os.path.join(path, TABLE)
        if os.path.isfile(path):
            root, name = os.path.split(path)
            for what, endings in NO_TABLES.items():
                if name.lower().endswith(endings):
                    raise UserError(f"{path} is {what}")
            if name.lower().endswith(".json"):
                self.split_file = name
            else:
                table = path
        self._table = read_table(table) if os.path.isfile(table) else []
        if self._table:
            drawn = os.path.splitext(os.path.basename(table))[0] + ".split.json"
            self.split_file = "" if has_split(self._table, table) else drawn
        super().locate(root)
        template = os.path.join(self.dataset_dir, "template.txt")
        if os.path.isfile(template):
            self.template = _read_template(template)

    def load_lists(self) -> Lists:
        """As every reader's, with the display names of `classnames.txt`."""
        if self.has_split_file():
            self._note_changes()
        train, val, test = super().load_lists()
        path = os.path.join(self.dataset_dir, "classnames.txt")
        if not os.path.isfile(path):
            return train, val, test
        display = dict(_folder_and_name(line, path) for line in read_lines(path))
        return _rename(train, display), _rename(val, display), _rename(test, display)

    def read_official(self) -> Lists:
        """Return the table's lists, else the part folders', else draw from class folders."""
        if self._table:
            return self._table_lists()
        folders = self._part_folders()
        if folders:
            self.split_file = ""
            return self._part_lists(folders)
        lists: Lists = ([], [], [])
        for label, folder in enumerate(self._class_folders()):
            items = self._class_items(os.path.join(self.image_dir, folder), label, folder)
            extend(lists, split_class(items, os.path.join(self.image_dir, folder)))
        return lists

    def remarks(self, lists: Lists, read: bool = False) -> list[str]:
        """Return a line for each thing that changes what numbers mean, and for what isn't read."""
        passed = describe_passed(self._passed)
        return [
            *said_twice(*lists, read=read),
            *said_of_classes(*lists),
            *([f"passed over {passed}"] if passed else []),
        ]

    def _class_folders(self) -> list[str]:
        """Return the class folders.

        Raises UserError for one that looks like the root itself, or if there are images alone.
        """
        flat = images_in(self.image_dir)
        if flat and not has_folders(self.image_dir):
            raise UserError(
                f"{self.image_dir} has {flat} images and no class folders; put them into a folder "
                f"for each class, or a table {TABLE} beside them"
            )
        folders = class_folders(self.image_dir)
        count_outside(self.image_dir, self._passed, folders, KNOWN)
        only = os.path.join(self.image_dir, folders[0])
        if len(folders) == 1 and has_folders(only):
            raise UserError(
                f"{self.image_dir} has one class folder, {folders[0]}, with folders inside; if "
                f"these are the classes, say --root {only}"
            )
        return folders

    def _class_items(self, folder: str, label: int, name: str) -> Items:
        """Return the images of one class folder, however deep they lie."""
        return [
            Datum(impath=os.path.join(folder, image), label=label, classname=name)
            for image in walk_images(folder, self._passed)
        ]

    def _note_changes(self) -> None:
        """Say so if images came or went since the split was drawn here."""
        split = read_json(self.split_path)
        if not isinstance(split, dict) or "drawn_with_seed" not in split:
            return
        parts = (split.get(part, []) for part in ("train", "val", "test"))
        listed = sum(len(part) for part in parts if isinstance(part, list))
        folders = [] if self._table else self._class_folders()
        there = len(self._table) or sum(
            len(walk_images(os.path.join(self.image_dir, folder), self._passed))
            for folder in folders
        )
        if there != listed:
            print(
                f"{self.split_path} was drawn from {listed} images and there are {there} now; "
                "delete it to draw the split anew"
            )

    def _part_folders(self) -> dict[int, str]:
        """Return the folders of train (0), val (1) and test (2), if the classes lie in such."""
        found: dict[int, str] = {}
        others = 0
        with scan(self.image_dir) as entries:
            for entry in entries:
                part = SPLITS.get(entry.name.lower())
                if part is not None and entry.is_dir() and has_folders(entry.path):
                    if part in found:
                        raise UserError(f"{found[part]} and {entry.path} are both there; keep one")
                    found[part] = entry.path
                    continue
                others += entry.is_dir() and not entry.name.startswith(".")
        to_evaluate = set(found) == {2} and not others
        return found if to_evaluate or (0 in found and len(found) > 1) else {}

    def _part_lists(self, folders: dict[int, str]) -> Lists:
        # A class has its place in the first of the lists that is there.
        first = folders[min(folders)]
        labels = {name: label for label, name in enumerate(class_folders(first))}
        lists: Lists = ([], [], [])
        read = [os.path.basename(folder) for folder in folders.values()]
        count_outside(self.image_dir, self._passed, read, KNOWN)
        for part, folder in folders.items():
            count_outside(folder, self._passed, class_folders(folder))
            for name in class_folders(folder):
                if name not in labels:
                    raise UserError(f"class '{name}' of {folder} is not in {first}; add it")
                lists[part].extend(
                    self._class_items(os.path.join(folder, name), labels[name], name)
                )
        return _test_or_val(lists)

    def _table_lists(self) -> Lists:
        names = sorted({name for _, name, _ in self._table})
        labels = {name: label for label, name in enumerate(names)}
        undecided = defaultdict(list)
        lists: Lists = ([], [], [])
        for image, name, part in self._table:
            impath = os.path.join(self.image_dir, image)
            item = Datum(impath=impath, label=labels[name], classname=name)
            (lists[SPLITS[part]] if part else undecided[name]).append(item)
        for name in sorted(undecided):
            extend(lists, split_class(undecided[name], f"class '{name}' of the table"))
        return _test_or_val(lists)


def _test_or_val(lists: Lists) -> Lists:
    train, val, test = lists
    return train, val, test or val


def _read_template(path: str) -> str:
    lines = read_lines(path)
    if len(lines) != 1 or lines[0].count("{}") != 1:
        raise UserError(f"{path}: expected one line with one {{}} for the class name")
    return lines[0]


def _folder_and_name(line: str, path: str) -> tuple[str, str]:
    folder, _, name = line.partition("\t" if "\t" in line else " ")
    if not name.strip():
        raise UserError(f"{path}: '{line}' has no display name; expected a class folder and a name")
    return folder, name.strip()


def _rename(items: Items, display: dict[str, str]) -> Items:
    """Give classes their display names; a class's identity stays what it is in the files."""
    return [replace(item, classname=display.get(item.classname, item.classname)) for item in items]
