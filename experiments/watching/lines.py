"""Lines for a terminal: none is wider than it, and paths break behind a slash."""

from __future__ import annotations

import os
import re
import shutil
import sys
import unicodedata
from typing import IO

WIDTH = 80
WORDS = re.compile(r"\([^()]{1,12}\)\S*|\S+")  # "(45 s);" is one


def cells(text: str) -> int:
    """How many columns a text takes: wide characters take two, combining ones none."""
    return sum(
        0 if unicodedata.combining(c) else 2 if unicodedata.east_asian_width(c) in "WF" else 1
        for c in text
    )


def width_of(stream: IO[str]) -> int:
    """The columns of the terminal that a stream goes to; 80 if it goes elsewhere."""
    return max(20, shutil.get_terminal_size((WIDTH, 24)).columns) if stream.isatty() else WIDTH


def fold(text: str, width: int = WIDTH, indent: str = "    ", cut: bool = True) -> str:
    """Break a line at its spaces; with `cut`, also words that are wider than a line.

    Without, such a word has a line of its own: whoever searches a file finds it whole.
    """
    body = text.lstrip(" ")
    lines, line = [], text[: len(text) - len(body)]
    for word in WORDS.findall(body):
        for i, piece in enumerate(_pieces(word, width - len(indent)) if cut else [word]):
            gap = " " if line.strip() and not i else ""
            if line.strip() and cells(line + gap + piece) > width:
                lines.append(line)
                line, gap = indent, ""
            line += gap + piece
    return "\n".join([*lines, line])


def _pieces(word: str, width: int) -> list[str]:
    """A word's parts, each up to a slash or as wide as may be; the word if it isn't too wide."""
    if cells(word) <= width:
        return [word]
    pieces = [""]
    for character in word:
        if cells(pieces[-1] + character) > width or pieces[-1].endswith("/"):
            pieces.append("")
        pieces[-1] += character
    return pieces


def shorten(text: str, width: int) -> str:
    """A text on one line, its middle left out where it is too wide: both ends of a name tell."""
    if cells(text) <= width:
        return text
    head, tail = "", ""
    while True:  # a third of it in front
        front, back = head, tail
        if len(tail) < 2 * len(head):
            back = text[-len(tail) - 1] + tail
        else:
            front += text[len(head)]
        if cells(front + back) + 1 > width:
            break
        head, tail = front, back
    return f"{head}…{tail}"


def say(text: str, stream: IO[str] | None = None) -> None:
    """Print a line, folded to where it goes."""
    stream = stream or sys.stdout
    print(fold(text, width_of(stream), cut=stream.isatty()), file=stream, flush=True)


def duration(seconds: float) -> str:
    """Return "45 s", "12 min" or "3 h 20 min"."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60} min"


def told_to_go(seconds: float, more: bool) -> str:
    """Return "; about 3 h 20 min to go", or "" as long as nothing is known; `more`: at least."""
    if seconds < 1:
        return ""
    return f"; {'at least' if more else 'about'} {duration(seconds)} to go"


def is_live(stream: IO[str]) -> bool:
    """Whether a stream goes to a terminal on which a view can be redrawn."""
    return stream.isatty() and os.environ.get("TERM", "") not in ("", "dumb", "unknown")
