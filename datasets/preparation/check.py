"""Data sets as they are on disk, against what was published."""

from __future__ import annotations

import os
from dataclasses import dataclass, field

from dassl.utils import UserError, missing_files, read_json, undecodable
from dassl.utils.images import odd_lines
from datasets.base import ImageDataset

HEADER = ("data set", "found", "classes", "train", "val", "test", "missing", "unreadable")


@dataclass
class Finding:
    """What is there of one data set; sizes are (classes, train, val, test)."""

    name: str
    found: bool = False
    sizes: tuple[int, int, int, int] = (0, 0, 0, 0)
    published: tuple[int, int, int, int] | None = None
    missing: list[str] = field(default_factory=list)
    unreadable: list[str] | None = None  # None: not decoded
    names: dict[str, str] = field(default_factory=dict)  # of its classes, by key
    template: str = ""
    notes: list[str] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)  # worth a line, and nothing is wrong

    @property
    def complete(self) -> bool:
        """Whether the data set can be used for numbers to compare with others'."""
        as_published = self.published in (None, self.sizes)
        return self.found and as_published and not (self.missing or self.unreadable or self.notes)

    def cells(self) -> tuple[str, ...]:
        """The row of the table."""
        sizes = [
            f"{size:,}"
            if self.published in (None, self.sizes) or size == wanted
            else f"{size:,} of {wanted:,}"
            for size, wanted in zip(self.sizes, self.published or self.sizes, strict=True)
        ]
        if not self.found:
            return (self.name, "no", *[""] * 6)
        unreadable = "not decoded" if self.unreadable is None else str(len(self.unreadable))
        return (self.name, "yes", *sizes, str(len(self.missing)), unreadable)


def check(reader: type[ImageDataset], root: str, decode: bool = False) -> Finding:
    """Read a data set's lists and look for its images; `decode` reads every one of them."""
    finding = Finding(reader.__name__, published=reader.sizes)
    if reader.dataset_dir and not os.path.isdir(os.path.join(root, reader.dataset_dir)):
        return finding
    try:
        data = reader.open(root)
        lists = data.read_lists()
        data.require_clear_classes(*lists)
    except UserError as error:
        finding.notes.append(str(error))
        return finding
    finding.found = True
    items = [item for part in lists for item in part]
    finding.names, finding.template = data.all_classes(lists[0] or lists[2]), data.template
    finding.sizes = (len({item.label for item in items}), *map(len, lists))
    finding.remarks += data.remarks(lists, read=decode)
    if data.split_file and not data.has_split_file():
        where = finding.notes if reader.sizes else finding.remarks
        where.append(f"no {data.split_path}: the first run would draw a split")
    elif data.split_file and reader.sizes and "drawn_with_seed" in read_json(data.split_path):
        finding.notes.append(f"{data.split_path} was drawn here, it isn't the published one")
    finding.missing = missing_files(item.impath for item in items)
    if decode:
        gone = set(finding.missing)
        odd: dict[str, list[str]] = {}
        there = (item.impath for item in items if item.impath not in gone)
        finding.unreadable = undecodable(dict.fromkeys(there), odd)
        finding.remarks += odd_lines(odd)
    return finding


def table(findings: list[Finding], shown: int = 5) -> str:
    """Return the findings as a text table, the first files that are wrong below it."""
    rows = [HEADER, *(finding.cells() for finding in findings)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)).rstrip() for row in rows
    ]
    lines.insert(1, "  ".join("-" * width for width in widths))
    for finding in findings:
        lines += [f"{finding.name}: {note}" for note in (*finding.notes, *finding.remarks)]
        for what, paths in (("missing", finding.missing), ("unreadable", finding.unreadable or [])):
            lines += [f"{finding.name}: {what}: {path}" for path in paths[:shown]]
            if len(paths) > shown:
                lines.append(f"{finding.name}: {what}: and {len(paths) - shown:,} more")
    return "\n".join(lines)
