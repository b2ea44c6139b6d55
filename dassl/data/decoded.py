"""Decoded training images, kept for the next epoch; worker processes share them.

Each image is decoded once while there is room, whichever worker reads it first. Workers share
memory that they inherit when they are forked: no file, and no part of /dev/shm, which is small in
containers. Where they are started otherwise each keeps those that it happens to read.
"""

from __future__ import annotations

import mmap
import multiprocessing
import struct
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from PIL import Image

_COUNTS = struct.Struct("=qqq")  # images decoded, images kept, bytes of those
_PLACE = struct.Struct("=qqq")  # of an image: where it begins (0: it isn't kept), width, height


class DecodedImages:
    """RGB images by index, as many as there is room for.

    Args:
        number: of images there are.
        room: bytes that may be kept, by all workers together.
        workers: processes that read them; 0: this one does.
    """

    def __init__(self, number: int, room: int, workers: int = 0) -> None:
        self.room = room
        self.workers = workers
        self._images: dict[int, Image.Image] = {}
        self._counts = bytearray(_COUNTS.size)
        self._first = _COUNTS.size + number * _PLACE.size
        self._memory: mmap.mmap | None = None
        if workers and forks():
            # Nothing of it is taken before it is written to.
            self._memory = mmap.mmap(-1, self._first + room)
            self._lock = multiprocessing.get_context("fork").Lock()
        elif workers:
            self.room = room // workers

    @property
    def shared(self) -> bool:
        """Whether the workers share them."""
        return self._memory is not None

    def get(self, index: int) -> Image.Image | None:
        """The image, if it is kept."""
        if self._memory is None:
            return self._images.get(index)
        from PIL import Image

        with self._lock:
            start, *size = self._place(index)
        if not start:
            return None
        with memoryview(self._memory) as memory, memory[start : start + _bytes(size)] as pixels:
            return Image.frombytes("RGB", tuple(size), pixels)

    def add(self, index: int, image: Image.Image) -> None:
        """Count an image that was decoded, and keep it if there is room."""
        if self._memory is None:
            self._count(index, image)
            return
        with self._lock:
            self._count(index, image)

    def _count(self, index: int, image: Image.Image) -> None:
        counts: Any = self._counts if self._memory is None else self._memory
        decoded, kept, used = _COUNTS.unpack_from(counts)
        size = _bytes(image.size)
        if used + size <= self.room and not self._has(index):
            if self._memory is None:
                self._images[index] = image
            else:
                start = self._first + used
                self._memory[start : start + size] = image.tobytes()
                place = _COUNTS.size + index * _PLACE.size
                _PLACE.pack_into(self._memory, place, start, *image.size)
            kept, used = kept + 1, used + size
        _COUNTS.pack_into(counts, 0, decoded + 1, kept, used)

    def _has(self, index: int) -> bool:
        return index in self._images or (self._memory is not None and self._place(index)[0] > 0)

    def _place(self, index: int) -> tuple[int, ...]:
        assert self._memory is not None
        return _PLACE.unpack_from(self._memory, _COUNTS.size + index * _PLACE.size)

    def record(self) -> dict[str, Any]:
        """What was decoded and is kept; None where each worker knows its own alone."""
        known = self.shared or not self.workers
        counts: Any = self._memory if self.shared else self._counts
        decoded, kept, used = _COUNTS.unpack_from(counts) if known else (None, None, None)
        return {
            "decoded": decoded,
            "kept": kept,
            "kept_bytes": used,
            "room_bytes": self.room if known else self.room * self.workers,
            "workers_share": self.shared,
        }


def forks() -> bool:
    """Whether worker processes are forked, as far as is set; the system's default is first."""
    method = multiprocessing.get_start_method(allow_none=True)
    return (method or multiprocessing.get_all_start_methods()[0]) == "fork"


def _bytes(size: tuple[int, ...] | list[int]) -> int:
    return size[0] * size[1] * 3
