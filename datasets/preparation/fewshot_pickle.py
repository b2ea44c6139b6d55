"""Few-shot samples of the original code, `shot_16-seed_1.pkl`, as JSON; nothing in them is run.

An object of the pickle is its attributes here; its class is never looked up, imported or called.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from dassl.utils import UserError, check_kind, read_bytes, reason
from dassl.utils.pickles import PickleError, load_pickle, plain
from datasets.annotations import Row

PARTS = ("train", "val")


class PickledDatum:
    """Stands for whatever a pickle names: an object of that class, with its attributes."""

    def __init__(self, *arguments: Any) -> None:
        if arguments:
            raise PickleError("it makes an object that is no plain record")
        self.attributes: dict[str, Any] = {}

    def __new__(cls, *arguments: Any) -> PickledDatum:
        """Return one as pickle makes it; arguments are refused on this way too."""
        record = super().__new__(cls)
        record.__init__(*arguments)
        return record

    def __setstate__(self, state: Any) -> None:
        if not isinstance(state, dict):
            raise PickleError("it makes an object that is no plain record")
        self.attributes = state


def read_sample(path: Path) -> dict[str, list[Row]]:
    """Return the lists of (path, label, class name) in a few-shot pickle, paths as they are there.

    Raises UserError if the file is anything else.
    """
    try:
        content = load_pickle(read_bytes(path), lambda module, name: PickledDatum)
        content = plain(content, (str, int, float, bool, type(None), PickledDatum))
        if not isinstance(content, dict) or "train" not in content:
            raise PickleError("it holds no training list")
        return {
            part: [_row(record) for record in check_kind(content[part], list, f"'{part}'")]
            for part in content
            if part in PARTS
        }
    except (PickleError, UserError, MemoryError) as error:
        raise UserError(f"{path} is not a few-shot sample: {reason(error)}") from None


def _row(record: Any) -> Row:
    values = check_kind(record, PickledDatum, "an entry").attributes
    path, label, classname = (values.get(key) for key in ("_impath", "_label", "_classname"))
    check_kind(label, int, "a label")
    return (check_kind(path, str, "a path"), label, check_kind(classname, str, "a class's name"))
