"""Files as they come in: every text, JSON and YAML file is read here, and checked first.

What is no regular file, is too large, isn't in its format or holds another kind of thing is a
`UserError` in one line that names the file.
"""

from __future__ import annotations

import codecs
import json
import os
import stat
from copy import deepcopy
from functools import lru_cache
from typing import Any, BinaryIO

from .errors import UserError

TEXT_LIMIT = 1 << 30  # bytes of a text that is read: no list of images has as many
YAML_LIMIT = 1 << 20

Kind = type | tuple[type, ...]
_KINDS = {
    dict: "an object of keys and values",
    list: "a list",
    str: "a text",
    int: "a whole number",
    float: "a number",
    bool: "a truth value",
    type(None): "nothing",
}


def open_file(path: str | os.PathLike) -> BinaryIO:
    """Open a file for reading bytes; nothing but a regular file, whatever the path leads to.

    Raises UserError if it is missing, something else (a folder, a pipe, a device) or unreadable.
    """
    try:
        # A pipe nobody writes to would be waited for.
        file = os.fdopen(os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0)), "rb")
    except FileNotFoundError:
        raise UserError(f"no such file: {path}") from None
    except IsADirectoryError:
        raise UserError(f"{path} is a folder, not a file") from None
    except (OSError, ValueError) as error:  # ValueError: a null character in the name
        raise UserError(f"cannot read {path}: {reason(error)}") from None
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        file.close()
        raise UserError(f"{path} is no regular file")
    return file


def read_bytes(path: str | os.PathLike, limit: int = TEXT_LIMIT) -> bytes:
    """Return a file's content. Raises UserError as `open_file`, and above `limit` bytes."""
    with open_file(path) as file:
        try:
            content = file.read(limit + 1)
        except OSError as error:
            raise UserError(f"cannot read {path}: {reason(error)}") from None
    if len(content) > limit:
        raise UserError(f"{path} is larger than {limit:,} bytes; such a file isn't read")
    return content


def read_text(path: str | os.PathLike, limit: int = TEXT_LIMIT) -> str:
    """Return a UTF-8 text without its byte-order mark, or a UTF-16 one that has one.

    Raises UserError as `read_bytes`, and for any other encoding.
    """
    content = read_bytes(path, limit)
    wide = content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    try:
        return content.decode("utf-16" if wide else "utf-8-sig")
    except UnicodeDecodeError as error:
        # Whether it is an old encoding of Windows or no text at all can't be told.
        raise UserError(f"{path} is not UTF-8 text, so save it as that: {error}") from None


def read_json(path: str | os.PathLike, kind: Kind = object, unique: bool = False) -> Any:
    """Return the content of a JSON file, a `kind`: dict, list, ….

    Raises UserError as `read_text`, or if it is not JSON, or holds another kind of thing, or with
    `unique` if an object has a key twice, of which JSON's readers keep the last.
    """
    return _parse_json(read_text(path), path, kind, unique)


def read_json_lines(path: str | os.PathLike) -> list[dict[str, Any]]:
    """Return the objects of a file with one a line. Raises UserError as `read_json`."""
    lines = read_text(path).splitlines()
    return [_parse_json(line, f"{path}, line {i},", dict) for i, line in enumerate(lines, start=1)]


def _parse_json(text: str, where: str | os.PathLike, kind: Kind, unique: bool = False) -> Any:
    pairs = _each_key_once if unique else None
    try:
        content = json.loads(text, parse_constant=_no_such_number, object_pairs_hook=pairs)
    except ValueError as error:
        raise UserError(f"{where} is not valid JSON: {error}") from None
    except RecursionError:
        raise UserError(f"{where} is nested too deep") from None
    return check_kind(content, kind, where)


def _each_key_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise ValueError(f"the key {key!r} is there twice")
        found[key] = value
    return found


def _no_such_number(token: str) -> None:
    raise ValueError(f"{token} is no number of JSON's")


def read_yaml(path: str | os.PathLike) -> dict[str, Any]:
    """Return the content of a YAML file of `KEY: value` lines; {} if it is empty.

    Raises UserError as `read_text`, or if it is anything else.
    """
    return parse_yaml(read_text(path, YAML_LIMIT), path)


def parse_yaml(text: str, where: str | os.PathLike) -> dict[str, Any]:
    """Return what a text in YAML says, as `read_yaml`; `where` names it in the error."""
    import yaml

    try:
        content = deepcopy(_parsed(text))
    except yaml.YAMLError as error:
        raise UserError(f"{where} is not valid YAML: {error}") from None
    except RecursionError:
        raise UserError(f"{where} is nested too deep, or in itself") from None
    # What its tags make of a value that isn't one: a date without a day, a key that is a list.
    except (ValueError, TypeError, LookupError, AttributeError, ArithmeticError) as error:
        raise UserError(f"{where} is not valid YAML: {reason(error)}") from None
    return check_kind({} if content is None else content, dict, where)


@lru_cache(maxsize=256)
def _parsed(text: str) -> Any:
    """What a text says, read once: a protocol's runs share their files, and reading is slow."""
    import yaml

    content = yaml.safe_load(text)
    _count(content)
    return content


def _count(value: Any, known: dict[int, int] | None = None) -> int:
    """Return how many values a walk through `value` meets. Raises ValueError if too many.

    Aliases make a short text endless to whoever walks through it.
    """
    if not isinstance(value, (dict, list)):
        return 1
    known = {} if known is None else known
    if id(value) not in known:
        items = value.values() if isinstance(value, dict) else value
        known[id(value)] = 1 + sum(_count(item, known) for item in items)
    if known[id(value)] > YAML_LIMIT:
        raise ValueError("its aliases stand for too many values")
    return known[id(value)]


def check_kind(value: Any, kind: Kind, what: str | os.PathLike) -> Any:
    """Return `value`. Raises UserError, calling it `what`, unless it is a `kind`."""
    if not isinstance(value, kind) or (isinstance(value, bool) and kind in (int, float)):
        kinds = kind if isinstance(kind, tuple) else (kind,)
        wanted = " or ".join(_KINDS.get(k, k.__name__) for k in kinds)
        found = _KINDS.get(type(value), type(value).__name__)
        raise UserError(f"{what} holds {found}, not {wanted}")
    return value


def reason(error: BaseException) -> str:
    """Return an exception's text in one line, without a file's name, or its type."""
    text = getattr(error, "strerror", None) or " ".join(str(error).split())
    return text if isinstance(text, str) and text else type(error).__name__
