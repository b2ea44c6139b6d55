"""What the Python entry points share: words on their command lines, tables for pages."""

from __future__ import annotations

import argparse
import csv
import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import IO

from .errors import UserError

_MOST_SEEDS = 1000


class Parser(argparse.ArgumentParser):
    """A parser whose complaints are one line, as all of this program's."""

    def error(self, message: str) -> None:
        """Raise UserError where argparse would print its usage and exit."""
        raise UserError(f"{message} (python {self.prog} --help lists the options)")


def positive(text: str) -> int:
    """Return a whole number from 1."""
    if not re.fullmatch("[0-9]{1,9}", text) or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 1")
    return int(text)


def natural(text: str) -> int:
    """Return a whole number from 0."""
    if not re.fullmatch("[0-9]{1,9}", text):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 0")
    return int(text)


def shots(text: str) -> int:
    """Return a number of images per class; -1 for all."""
    return -1 if text == "-1" else positive(text)


def seed_list(text: str) -> list[int]:
    """Return the seeds of "2", "1-3" or "1,2,5"."""
    seeds = []
    for part in text.split(","):
        first, dash, last = part.partition("-")
        numbers = [first, last] if dash else [first, first]
        if not all(re.fullmatch("[0-9]{1,10}", number) for number in numbers):
            raise argparse.ArgumentTypeError(f"{text!r} is no seed: write 2, 1-3 or 1,2,5")
        begin, end = map(int, numbers)
        if not begin <= end < 2**32 or end - begin >= _MOST_SEEDS:
            raise argparse.ArgumentTypeError(
                f"{part!r} is no range of seeds: up to {2**32 - 1}, the smaller one first, at most "
                f"{_MOST_SEEDS}"
            )
        seeds += range(begin, end + 1)
    return seeds


def distinct_seeds(lists: Iterable[Sequence[int]]) -> list[int]:
    """Return the seeds of several `seed_list`s. Raises UserError where one is there twice."""
    seeds = [seed for each in lists for seed in each]
    twice = next((seed for seed in seeds if seeds.count(seed) > 1), None)
    if twice is not None:
        raise UserError(f"--seeds: {twice} is there twice")
    return seeds


def output_file(text: str) -> str:
    """Return the name of a file to write, if it can be written: said before the work, not after."""
    path = Path(text)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise argparse.ArgumentTypeError(f"cannot write {text}: {error.strerror}") from None
    if path.is_dir():
        raise argparse.ArgumentTypeError(f"cannot write {text}: it is a folder")
    if not os.access(path.parent, os.W_OK):
        raise argparse.ArgumentTypeError(f"cannot write {text}: Permission denied")
    return text


def markdown_table(rows: Sequence[Sequence[str]], heads: int = 1) -> str:
    """Return rows of Markdown, the titles first, as a table.

    heads: how many columns are words; the others are numbers.
    """
    from tabulate import DataRow, TableFormat, tabulate

    rule = " | ".join(["---"] * heads + ["---:"] * (len(rows[0]) - heads))
    line = DataRow("| ", " | ", " |")
    form = TableFormat(None, lambda *_: f"| {rule} |", None, None, line, line, 0, None)
    return tabulate(
        rows[1:],
        headers=rows[0],
        tablefmt=form,
        disable_numparse=True,
        stralign=None,
        preserve_whitespace=True,
    )


_MARKDOWN = str.maketrans({c: f"\\{c}" for c in "\\|`*_<>[]"} | {"\n": " ", "\r": " "})


def escape_markdown(text: str) -> str:
    """Return text that Markdown shows as it is, in a table's cell too.

    An underscore inside a word means nothing there, and stays.
    """
    return re.sub(r"(?<=\w)\\_(?=\w)", "_", text.translate(_MARKDOWN))


_FORMULA = ("=", "+", "-", "@", "\t", "\r")


def write_csv_rows(file: IO[str], rows: Iterable[Iterable[object]]) -> None:
    """Write rows as CSV; None is an empty cell.

    A text that a spreadsheet would take for a formula gets a ' in front.
    """
    writer = csv.writer(file, lineterminator="\n")
    for row in rows:
        cells = ("" if value is None else value for value in row)
        writer.writerow(
            f"'{cell}" if isinstance(cell, str) and cell.startswith(_FORMULA) else cell
            for cell in cells
        )
