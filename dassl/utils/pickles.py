"""Pickles of plain values, read without running anything.

A pickle is a program. Of its instructions only those that build values are followed, and what they
may call is a list of the reader's own: a name in a pickle is never imported.
"""

from __future__ import annotations

import io
import pickle
import pickletools
from collections.abc import Callable
from typing import Any, BinaryIO

# How deep tuples may be nested: their hash is a recursion that Python itself doesn't watch.
DEPTH = 100
_FORBIDDEN = {
    "EXT1", "EXT2", "EXT4", "INST", "OBJ", "PERSID", "NEWOBJ_EX", "NEXT_BUFFER",
    "READONLY_BUFFER", "BYTEARRAY8", "EMPTY_SET", "ADDITEMS", "FROZENSET",
}  # fmt: skip
_TUPLES = {"TUPLE", "TUPLE1", "TUPLE2", "TUPLE3"}
_PUTS = {"PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE"}
_GETS = {"GET", "BINGET", "LONG_BINGET"}
_MARK = -1


class PickleError(Exception):
    """A pickle is damaged, or does what isn't allowed; the text says what."""


def load_pickle(
    data: bytes,
    find: Callable[[str, str], Any],
    persistent: Callable[[Any], Any] | None = None,
) -> Any:
    """Return what a pickle describes.

    Args:
        data: the pickle.
        find: (module, name) → what stands for that name here; raises PickleError for others.
        persistent: a persistent id → its object.

    Raises:
        PickleError: it is damaged, or would do anything else.
    """

    class Reader(pickle.Unpickler):
        def find_class(self, module: str, name: str) -> Any:
            return find(module, name)

        def persistent_load(self, key: Any) -> Any:
            if persistent is None:
                raise PickleError("it refers to something outside of it")
            return persistent(key)

    check_pickle(io.BytesIO(data))
    try:
        return Reader(io.BytesIO(data)).load()
    except (PickleError, MemoryError):
        raise
    except Exception as error:  # wrong bytes break it at any place
        raise PickleError(str(error) or type(error).__name__) from None


def check_pickle(file: BinaryIO) -> None:
    """Go through the instructions of a pickle, following none, to its end.

    Raises PickleError for damage, an instruction that isn't for plain values, and what would take
    the unpickler itself down: a place in its memory far beyond the others, tuples nested deep.
    """
    stack: list[int] = []  # how deep each value is nested in tuples
    memo: dict[int, int] = {}
    try:
        for instruction, argument, _ in pickletools.genops(file):
            name = instruction.name
            if name in _FORBIDDEN:
                raise PickleError(f"it holds the instruction {name}")
            if name in _PUTS:
                place = len(memo) if name == "MEMOIZE" else int(argument)
                # Ours and torch's number them from 0; Python's own protocol 0 may leave some out.
                if not 0 <= place <= 2 * len(memo) + 1000:
                    raise PickleError("its memory has a hole")
                memo[place] = stack[-1]
            elif name in _GETS:
                stack.append(memo[int(argument)])
            else:
                taken = _take(stack, instruction)
                depth = 1 + max(taken, default=0) if name in _TUPLES else 0
                if depth > DEPTH:
                    raise PickleError("it is nested too deep")
                for after in instruction.stack_after:
                    stack.append(_MARK if after is pickletools.markobject else depth)
    except PickleError:
        raise
    except Exception as error:
        raise PickleError(str(error) or type(error).__name__) from None


def _take(stack: list[int], instruction: pickletools.OpcodeInfo) -> list[int]:
    """Take from the stack what an instruction takes: the values' depths."""
    before = instruction.stack_before
    if pickletools.markobject in before:
        place = len(stack) - 1 - stack[::-1].index(_MARK)
        taken = stack[place + 1 :]
        del stack[place:]
        # What lies below the mark and is changed: a list, a dict.
        below = before.index(pickletools.markobject)
    else:
        taken, below = [], len(before)
    for _ in range(below):
        taken.append(stack.pop())
    return taken


def plain(value: Any, allowed: tuple[type, ...], left_out: type | tuple[type, ...] = ()) -> Any:
    """Return nested dicts, lists and tuples as such, with nothing of another kind in them.

    Args:
        value: what an unpickler built; subclasses of dict and list become plain ones.
        allowed: the types of other values.
        left_out: types of values that are dropped from the dicts, lists and tuples they are in.

    Raises:
        PickleError: another type, a container in itself, or nesting deeper than `DEPTH`.
    """
    done: dict[int, Any] = {}

    def walk(value: Any, depth: int) -> Any:
        if type(value) in allowed:
            return value
        if not isinstance(value, (dict, list, tuple)):
            raise PickleError(f"it holds a {type(value).__name__}")
        if depth > DEPTH:
            raise PickleError("it is nested too deep, or in itself")
        if id(value) not in done:
            if isinstance(value, dict):
                done[id(value)] = {
                    walk(key, depth + 1): walk(item, depth + 1)
                    for key, item in dict.items(value)
                    if not isinstance(item, left_out)
                }
            else:
                items = [walk(v, depth + 1) for v in value if not isinstance(v, left_out)]
                done[id(value)] = items if isinstance(value, list) else tuple(items)
        return done[id(value)]

    return walk(value, 0)
