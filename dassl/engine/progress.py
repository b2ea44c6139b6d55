"""A progress bar with the time left, on a terminal only."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from typing import TypeVar

from dassl.utils import Tee

Item = TypeVar("Item")


class Progress(Iterable[Item]):
    """Iterates over `items` with a bar on the terminal; the bar never enters the log."""

    def __init__(self, items: Iterable[Item], total: int, title: str) -> None:
        stream = sys.stderr.stream if isinstance(sys.stderr, Tee) else sys.stderr
        self._items = items
        self._bar = None
        if stream.isatty():
            from tqdm import tqdm

            self._bar = tqdm(items, desc=title, total=total, file=stream, leave=False)

    def __iter__(self) -> Iterator[Item]:
        return iter(self._items if self._bar is None else self._bar)

    def print(self, line: str) -> None:
        """Print a line above the bar."""
        if self._bar is not None:
            self._bar.clear()
        print(line, flush=True)


def with_last(items: Iterable[Item]) -> Iterator[tuple[Item, bool]]:
    """Yield (item, whether it is the last)."""
    iterator = iter(items)
    for item in iterator:
        for following in iterator:
            yield item, False
            item = following
        yield item, True
