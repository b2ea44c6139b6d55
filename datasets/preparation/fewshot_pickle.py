"""Few-shot samples of the original code, `shot_16-seed_1.pkl`, as JSON; nothing in them is run.

A pickle is a program. This one is read as a list of instructions, of which only those that build
lists, dicts, strings, numbers and plain records are followed; a record's class is a name here, it
is never looked up, imported or called.
"""

from __future__ import annotations

import pickletools
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from dassl.utils import UserError
from datasets.annotations import Row
from datasets.base import ImageDataset

PARTS = ("train", "val")
MARK = object()
VALUES = {  # instructions that carry their value
    "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8", "UNICODE",
    "BININT", "BININT1", "BININT2", "INT", "LONG", "LONG1", "LONG4",
}  # fmt: skip
CONSTANTS: dict[str, Callable[[], Any]] = {
    "NONE": lambda: None,
    "NEWTRUE": lambda: True,
    "NEWFALSE": lambda: False,
    "EMPTY_TUPLE": tuple,
    "EMPTY_LIST": list,
    "EMPTY_DICT": dict,
    "MARK": lambda: MARK,
}


class Record:
    """An object of the pickle: its attributes and the name of its class."""

    def __init__(self, class_name: object) -> None:
        self.class_name = class_name
        self.attributes: dict = {}


class _Name(str):
    """The name of a class or function: a word, not the thing."""


class Reader:
    """Follows the harmless instructions of one pickle. Raises ValueError at any other."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}

    def read(self) -> Any:
        """Return what the pickle describes, objects as `Record`."""
        for instruction, value, _ in pickletools.genops(self.data):
            name = instruction.name
            if name == "STOP":
                return self.stack.pop()
            if name in VALUES:
                self.stack.append(value)
            elif name in CONSTANTS:
                self.stack.append(CONSTANTS[name]())
            elif name not in ("PROTO", "FRAME"):
                step = getattr(self, f"_{name.lower()}", None)
                if step is None:
                    raise ValueError(f"it holds the instruction {name}")
                step(value)
        raise ValueError("it has no end")

    def _marked(self) -> list[Any]:
        """Take everything above the last mark off the stack, and the mark."""
        place = max(i for i, item in enumerate(self.stack) if item is MARK)
        items = self.stack[place + 1 :]
        del self.stack[place:]
        return items

    def _memoize(self, _: None) -> None:
        self.memo[len(self.memo)] = self.stack[-1]

    def _binput(self, key: int) -> None:
        self.memo[key] = self.stack[-1]

    _long_binput = _binput

    def _binget(self, key: int) -> None:
        self.stack.append(self.memo[key])

    _long_binget = _binget

    def _pop(self, _: None) -> None:
        self.stack.pop()

    def _tuple(self, _: None) -> None:
        self.stack.append(tuple(self._marked()))

    def _tuple1(self, _: None) -> None:
        self.stack.append((self.stack.pop(),))

    def _tuple2(self, _: None) -> None:
        self.stack[-2:] = [tuple(self.stack[-2:])]

    def _tuple3(self, _: None) -> None:
        self.stack[-3:] = [tuple(self.stack[-3:])]

    def _append(self, _: None) -> None:
        item = self.stack.pop()
        self.stack[-1].append(item)

    def _appends(self, _: None) -> None:
        items = self._marked()
        self.stack[-1].extend(items)

    def _setitem(self, _: None) -> None:
        value, key = self.stack.pop(), self.stack.pop()
        self.stack[-1][key] = value

    def _setitems(self, _: None) -> None:
        items = self._marked()
        self.stack[-1].update(zip(items[::2], items[1::2], strict=True))

    def _global(self, name: str) -> None:
        self.stack.append(_Name(name))

    def _stack_global(self, _: None) -> None:
        name, module = self.stack.pop(), self.stack.pop()
        self.stack.append(_Name(f"{module} {name}"))

    def _newobj(self, _: None) -> None:
        arguments, class_name = self.stack.pop(), self.stack.pop()
        if arguments != () or not isinstance(class_name, _Name):
            raise ValueError("it makes an object that is no plain record")
        self.stack.append(Record(class_name))

    def _build(self, _: None) -> None:
        state = self.stack.pop()
        if not isinstance(self.stack[-1], Record) or not isinstance(state, dict):
            raise ValueError("it makes an object that is no plain record")
        self.stack[-1].attributes.update(state)


def read_sample(path: Path) -> dict[str, list[Row]]:
    """Return the lists of (path, label, class name) in a few-shot pickle, paths as they are there.

    Raises UserError if the file is anything else.
    """
    try:
        content = Reader(path.read_bytes()).read()
        if not isinstance(content, dict) or "train" not in content:
            raise ValueError("it holds no training list")
        return {
            part: [_row(record) for record in content[part]] for part in content if part in PARTS
        }
    # A pickle that isn't one breaks at any place: wrong bytes, an empty stack, a missing key.
    except (ValueError, TypeError, KeyError, IndexError, AttributeError) as error:
        raise UserError(f"{path} is not a few-shot sample: {error}") from None


def _row(record: Record) -> Row:
    values = record.attributes
    return (str(values["_impath"]), int(values["_label"]), str(values["_classname"]))


def convert(reader: type[ImageDataset], root: str) -> list[Path]:
    """Write every `split_fewshot/shot_*-seed_*.pkl` of a data set as JSON beside it.

    The images are looked up in the current split by the ends of their paths, so it doesn't matter
    where the original code had them. Returns the JSON files. Raises UserError if a sample isn't
    one of the current split, or there is none.
    """
    data = reader.open(root)
    train, val, _ = data.load_lists()
    folder = Path(data.dataset_dir) / "split_fewshot"
    written = []
    for path in sorted(folder.glob("shot_*-seed_*.pkl")):
        match = re.fullmatch(r"shot_(\d+)-seed_(\d+)", path.stem)
        if not match:
            raise UserError(f"{path}: expected shot_<number>-seed_<number>.pkl")
        shots, seed = map(int, match.groups())
        sample = read_sample(path)
        pools = {"train": (train, shots), "val": (val, min(shots, 4))}
        lists = {}
        for part, (pool, number) in pools.items():
            rows = data.rows(pool)
            try:
                lists[part] = data.match_rows(_relative(sample.get(part, []), rows), pool, number)
            except ValueError as error:
                raise UserError(f"{path}, '{part}': {error}") from None
        target = data.fewshot_path(shots, seed)
        data.write_sample(lists["train"], lists["val"], target)
        written.append(Path(target))
    if not written:
        raise UserError(f"no shot_<number>-seed_<number>.pkl in {folder}")
    return written


def _relative(rows: list[Row], known: list[Row]) -> list[Row]:
    """Shorten each path to the longest end of it that is a path of the split."""
    paths = {row[0] for row in known}
    shortened = []
    for path, label, classname in rows:
        words = path.replace("\\", "/").split("/")
        ends = ("/".join(words[i:]) for i in range(len(words)))
        shortened.append((next((end for end in ends if end in paths), path), label, classname))
    return shortened
