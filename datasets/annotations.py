"""Lists, folders of images, and hashes: what the readers share below the data set."""

from __future__ import annotations

import csv
import hashlib
import io
import os
import random
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import IO

import numpy as np

from dassl.utils import IMAGE_ENDINGS, UserError, open_file, read_text, reason

NOT_A_CLASS = ("__MACOSX", "split_fewshot")

_TRIAL = (
    "import io, sys; from scipy.io import loadmat\n"
    "loadmat(io.BytesIO(sys.stdin.buffer.read()), squeeze_me=True)"
)

Row = tuple[str, int, str]  # path relative to the image folder, label, class name


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Inside, `random` runs as after `random.seed(seed)`; afterwards as if nothing had been drawn.

    A negative seed means none: `random` is drawn from as it is.
    """
    if seed < 0:
        yield
        return
    state = random.getstate()
    random.seed(seed)
    try:
        yield
    finally:
        random.setstate(state)


def read_lines(path: str) -> list[str]:
    """Return the lines of a text file, stripped, without the blank ones.

    Raises UserError if the file is missing or not UTF-8.
    """
    if not os.path.exists(path):
        raise UserError(f"no such file: {path}; see docs/datasets.md for the layout")
    return [line.strip() for line in read_text(path).splitlines() if line.strip()]


def read_csv(path: str) -> list[list[str]]:
    """Return the rows of a CSV table. Raises UserError as `read_text`, or if it is none."""
    try:
        return list(csv.reader(io.StringIO(read_text(path), newline="")))
    except csv.Error as error:
        raise UserError(f"{path} is not a CSV table: {error}") from None


def find_file(folder: str, inside: Iterable[str], name: str) -> str:
    """Return the path of the file `name` in the first of the folders `inside` that has it.

    Raises UserError if none has it.
    """
    for candidate in inside:
        path = os.path.normpath(os.path.join(folder, candidate, name))
        if os.path.isfile(path):
            return path
    raise UserError(f"no {name} in {folder}; see docs/datasets.md for the layout")


def read_mat(file: str | IO[bytes], variable: str) -> np.ndarray:
    """Return a variable of a MATLAB file, by path or open, single elements unpacked.

    Raises UserError if the file is missing, damaged or without that variable.
    """
    name = file if isinstance(file, str) else getattr(file, "name", "the MATLAB file")
    if isinstance(file, str):
        if not os.path.exists(file):
            raise UserError(f"no such file: {name}; see docs/datasets.md for the layout")
        with open_file(file) as opened:
            return _read_mat(opened, variable, name)
    return _read_mat(file, variable, name)


def _read_mat(file: IO[bytes], variable: str, name: str) -> np.ndarray:
    from scipy.io import loadmat

    content = file.read()
    # The reader is C, and some damage takes the process down with it: another one goes first.
    trial = subprocess.run([sys.executable, "-c", _TRIAL], input=content, capture_output=True)
    if trial.returncode < 0:
        raise UserError(f"{name} is not a readable MATLAB file: SciPy crashes at it")
    try:
        return np.atleast_1d(loadmat(io.BytesIO(content), squeeze_me=True)[variable])
    except KeyError:
        raise UserError(f"{name} has no variable '{variable}'") from None
    except Exception as error:  # a damaged file makes the reader raise nearly anything
        raise UserError(f"{name} is not a readable MATLAB file: {reason(error)}") from None


def class_folders(folder: str, ignored: Iterable[str] = ()) -> list[str]:
    """Return the names of the folders in `folder` by code point, without hidden or `ignored` ones.

    Raises UserError if there is none.
    """
    left_out = {*ignored, *NOT_A_CLASS}
    with scan(folder) as entries:
        names = sorted(e.name for e in entries if _visible(e) and e.is_dir())
    names = [name for name in names if name not in left_out]
    if not names:
        raise UserError(f"no class folders in {folder}; expected one folder per class")
    return names


def has_folders(folder: str) -> bool:
    """Return whether there are folders, other than hidden ones, in `folder`."""
    with scan(folder) as entries:
        return any(_visible(entry) and entry.is_dir() for entry in entries)


def image_files(folder: str) -> list[str]:
    """Return the names of the image files in `folder`, by code point.

    Raises UserError if there is none: a class without images is a half-finished copy.
    """
    with scan(folder) as entries:
        names = sorted(
            e.name for e in entries if _visible(e) and e.name.lower().endswith(IMAGE_ENDINGS)
        )
    if not names:
        raise UserError(f"no images in the class folder {folder}; add them or remove the folder")
    return names


def scan(folder: str) -> os.scandir:
    """`os.scandir`, with a UserError if `folder` is missing or cannot be read."""
    try:
        return os.scandir(folder)
    except OSError as error:
        raise UserError(f"cannot read the folder {folder}: {error.strerror}") from None


def _visible(entry: os.DirEntry) -> bool:
    return not entry.name.startswith(".")


def rows_hash(lists: Mapping[str, Iterable[Row]]) -> str:
    """Return the SHA-256 (hex) of named lists of rows: names, rows and their order count."""
    digest = hashlib.sha256()
    for name, rows in lists.items():
        digest.update(f"{name}\n".encode())
        for path, label, classname in rows:
            digest.update(f"{path}\t{label}\t{classname}\n".encode())
    return digest.hexdigest()
