"""Accuracy under corruptions: the rows of one model, tested in several ways, as lines of a table.

A line has the clean accuracy, that under each corruption, and the mean over those of images, at one
severity and on one set of classes (in the manner of ImageNet-C, arXiv 1903.12261, which averages
over severities too).
"""

from __future__ import annotations

from dataclasses import replace

from dassl.config.severities import CORRUPTIONS, OF_IMAGES
from experiments.results.records import AVERAGE, BySeed, Record, Row, Stat
from experiments.results.summary import Summary, average

CORRUPTED = "corruptions"  # the protocol
CORRUPTION, SEVERITY = "TEST.CORRUPTION", "TEST.SEVERITY"
CLEAN, MEAN = "clean", "mean"
COLUMNS = (CLEAN, *OF_IMAGES, MEAN, *(name for name in CORRUPTIONS if name not in OF_IMAGES))


def add_corruptions(summary: Summary) -> None:
    """Append the records of the protocol `corruptions`: one for each column of a line."""
    rows = [row for row in summary.rows if row.corruption]
    for key in dict.fromkeys((r.trainer, r.config, r.shots, r.severity) for r in rows):
        mine = [r for r in rows if (r.trainer, r.config, r.shots, r.severity) == key]
        clean = [
            row
            for row in summary.rows
            if row.protocol in ("base_to_new", "all_classes")
            and (row.trainer, row.config, row.shots) == key[:3]
        ]
        for classes in ("base", "new", "all"):
            summary.records += _records(mine, clean, classes)


def _records(rows: list[Row], clean: list[Row], classes: str) -> list[Record]:
    """The records of one model on one set of classes, data set by data set and on average."""
    names = dict.fromkeys(n for row in rows for n in row.datasets if (n, classes) in row.cells)
    columns = [*((CLEAN, row) for row in clean), *((row.corruption, row) for row in rows)]
    cells = {
        name: {
            column: row.cells[name, classes]
            for column, row in columns
            if (name, classes) in row.cells
        }
        for name in names
    }
    lines = {name: _line([found]) for name, found in cells.items()}
    if len(names) > 1:
        lines[AVERAGE] = _line(list(cells.values()))
    row = rows[0]
    return [
        replace(
            row.record(name, {"accuracy": stat}, over=list(names) if name == AVERAGE else ()),
            protocol=CORRUPTED,
            classes=classes,
            corruption=column,
            severity=row.severity,
        )
        for name, line in lines.items()
        for column, stat in line.items()
    ]


def _line(cells: list[dict[str, BySeed]]) -> dict[str, Stat]:
    """Accuracy by column, averaged over data sets, where all of them have it."""
    line = {}
    for column in COLUMNS:
        wanted = OF_IMAGES if column == MEAN else (column,)
        if all(name in found for found in cells for name in wanted):
            mean, by_seed = average([found[name] for found in cells for name in wanted])
            line[column] = Stat.of(by_seed, mean) if by_seed else Stat(mean, None, ())
    return line
