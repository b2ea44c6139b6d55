"""What a runner and its workers send each other: a JSON object, and open files with it."""

from __future__ import annotations

import json
import os
import socket
import struct
from collections.abc import Sequence
from typing import Any

_HEAD = struct.Struct("!II")  # length of the text, number of files
_AT_ONCE = 100  # files in one system call, which takes some 250


def send(to: socket.socket, message: dict[str, Any], files: Sequence[int] = ()) -> None:
    """Send a message with open files (descriptors). Raises OSError if nobody reads."""
    text = json.dumps(message).encode()
    to.sendall(_HEAD.pack(len(text), len(files)) + text)
    for start in range(0, len(files), _AT_ONCE):
        socket.send_fds(to, [b"."], files[start : start + _AT_ONCE])


def receive(source: socket.socket) -> tuple[dict[str, Any], list[int]] | None:
    """The next message and its files; None once the other side is gone, or where it broke off."""
    try:
        head = _exactly(source, _HEAD.size)
        if head is None:
            return None
        length, number = _HEAD.unpack(head)
        text = _exactly(source, length)
        files: list[int] = []
        while len(files) < number and text is not None:
            dot, some, *_ = socket.recv_fds(source, 1, _AT_ONCE)
            files += some
            if not dot:
                text = None
    except OSError:
        return None
    if text is None:
        for file in files:
            os.close(file)
        return None
    return json.loads(text), files


def _exactly(source: socket.socket, size: int) -> bytes | None:
    parts = bytearray()
    while len(parts) < size:
        part = source.recv(size - len(parts))
        if not part:
            return None
        parts += part
    return bytes(parts)
