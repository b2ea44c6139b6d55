"""A data set of one's own, without code: class folders, a table, or a split file."""

from __future__ import annotations

import os
from collections import defaultdict
from dataclasses import replace

from dassl.data.datasets import DATASET_REGISTRY, Datum
from dassl.utils import UserError, read_json

from .annotations import class_folders, has_folders, image_files, read_csv, read_lines, scan
from .base import ImageDataset
from .splits import Items, Lists, class_items, extend, split_class

TABLE = "labels.csv"
# What the splits of a table and the folders around class folders may be called: train, val, test.
PARTS = {"train": 0, "training": 0, "val": 1, "valid": 1, "validation": 1, "test": 2, "testing": 2}
COLUMNS = {
    "path": ("path", "image", "file", "filename", "filepath", "image_path"),
    "class": ("class", "label", "classname", "class_name", "category"),
    "split": ("split", "set", "part", "subset"),
}
TableRow = tuple[str, str, str]  # path, class, split ("" where there is none)


@DATASET_REGISTRY.register()
class ImageFolder(ImageDataset):
    """The images below DATASET.ROOT itself, in the first of these forms that is there.

    - ROOT is a `.csv` or a `.json` file: that table or split file, paths relative to its folder.
    - `labels.csv`: columns path, class and, if the split is given, split (train, val, test).
    - `split.json`: `{"train": [[path, label, class name], …], "val": …, "test": …}`.
    - `train/`, `val/`, `test/` with class folders in each; without test, val is the test set.
    - class folders: 50/20/30 % of each class, drawn once and saved as `split.json`.

    Optional beside them: `classnames.txt`, lines of a class folder and its display name, apart by a
    tab or the first space; `template.txt`, the prompt template in one line.
    """

    split_file = "split.json"
    how_to_get = "say --root DIR, a folder of class folders; see docs/datasets.md"

    def locate(self, root: str) -> None:
        """As every reader's, where `root` may be a file; also reads table and template.

        Raises UserError for a damaged table or template.
        """
        path = os.path.abspath(os.path.expanduser(root)) if root else ""
        table = os.path.join(path, TABLE)
        if os.path.isfile(path):
            root, name = os.path.split(path)
            if name.lower().endswith(".json"):
                self.split_file = name
            else:
                table = path
        self._table = _read_table(table) if os.path.isfile(table) else []
        if self._table:
            drawn = os.path.splitext(os.path.basename(table))[0] + ".split.json"
            self.split_file = "" if _has_split(self._table, table) else drawn
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
        return self.read_and_split_data(self.image_dir)

    def _note_changes(self) -> None:
        """Say so if images came or went since the split was drawn here."""
        split = read_json(self.split_path)
        if not isinstance(split, dict) or "drawn_with_seed" not in split:
            return
        parts = (split.get(part, []) for part in ("train", "val", "test"))
        listed = sum(len(part) for part in parts if isinstance(part, list))
        folders = [] if self._table else class_folders(self.image_dir)
        there = len(self._table) or sum(
            len(image_files(os.path.join(self.image_dir, folder))) for folder in folders
        )
        if there != listed:
            print(
                f"{self.split_path} was drawn from {listed} images and there are {there} now; "
                "delete it to draw the split anew"
            )

    def _part_folders(self) -> dict[int, str]:
        """Return the folders of train (0), val (1) and test (2), if the classes lie in such."""
        found = {}
        with scan(self.image_dir) as entries:
            for entry in entries:
                part = PARTS.get(entry.name.lower())
                if part is not None and entry.is_dir() and has_folders(entry.path):
                    found[part] = entry.path
        return found if 0 in found and len(found) > 1 else {}

    def _part_lists(self, folders: dict[int, str]) -> Lists:
        labels = {name: label for label, name in enumerate(class_folders(folders[0]))}
        lists: Lists = ([], [], [])
        for part, folder in folders.items():
            for name in class_folders(folder):
                if name not in labels:
                    raise UserError(f"class '{name}' of {folder} is not in {folders[0]}; add it")
                lists[part].extend(class_items(os.path.join(folder, name), labels[name], name))
        return _test_or_val(lists)

    def _table_lists(self) -> Lists:
        names = sorted({name for _, name, _ in self._table})
        labels = {name: label for label, name in enumerate(names)}
        undecided = defaultdict(list)
        lists: Lists = ([], [], [])
        for image, name, part in self._table:
            impath = os.path.join(self.image_dir, image)
            item = Datum(impath=impath, label=labels[name], classname=name)
            (lists[PARTS[part]] if part else undecided[name]).append(item)
        for name in sorted(undecided):
            extend(lists, split_class(undecided[name], f"class '{name}'"))
        return _test_or_val(lists)


def _test_or_val(lists: Lists) -> Lists:
    train, val, test = lists
    return train, val, test or val


def _read_table(path: str) -> list[TableRow]:
    """Return the rows of a CSV file.

    Its first row names the columns, or they are path, class and split in this order.
    """
    rows = [[cell.strip() for cell in row] for row in read_csv(path) if any(row)]
    header = [cell.lower() for cell in rows[0]] if rows else []
    at = {
        column: next((header.index(name) for name in names if name in header), None)
        for column, names in COLUMNS.items()
    }
    if at["path"] is None or at["class"] is None:
        at = {"path": 0, "class": 1, "split": 2}
    else:
        del rows[0]
    table = [tuple(_cell(row, at[column]) for column in COLUMNS) for row in rows]
    if not table or not all(image and name for image, name, _ in table):
        raise UserError(f"{path}: every row must hold a path, a class and, if given, a split")
    return [(image, name, part.lower()) for image, name, part in table]


def _cell(row: list[str], column: int | None) -> str:
    return row[column] if column is not None and column < len(row) else ""


def _has_split(table: list[TableRow], path: str) -> bool:
    """Return whether the table gives the split. Raises UserError if it does for some rows only."""
    parts = {part for _, _, part in table}
    odd = sorted(parts - {"", *PARTS})
    if odd:
        raise UserError(f"{path}: unknown split '{odd[0]}'; it is train, val or test")
    if "" in parts and len(parts) > 1:
        raise UserError(f"{path}: some rows have no split; give it for all rows or for none")
    return "" not in parts


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
