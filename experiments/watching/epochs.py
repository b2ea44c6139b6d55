"""How far a run that trains is, from what it leaves after each epoch."""

from __future__ import annotations

import json
import os
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from dassl.utils import UserError, read_yaml

TAIL = 1 << 14  # bytes from the end of a file that are looked at


@dataclass(frozen=True)
class Epochs:
    """Those behind a run, of how many (0: unknown), the latest one's loss, when it was recorded."""

    done: int = 0
    of: int = 0
    loss: float | None = None
    at: float = 0.0


def read_epochs(folder: Path) -> Epochs:
    """Read the last line of metrics.jsonl, and the config's OPTIM.MAX_EPOCH."""
    done, of, loss, at = 0, 0, None, 0.0
    with suppress(OSError, ValueError):
        path = folder / "metrics.jsonl"
        written = path.stat().st_mtime
        line = json.loads((tail(path).splitlines() or ["{}"])[-1])
        if isinstance(line, dict) and isinstance(line.get("epoch"), int):
            done, loss, at = line["epoch"], line.get("loss"), written
    with suppress(UserError, OSError):
        config = folder / "config.yaml"
        of = _max_epoch(config, config.stat().st_mtime_ns)
    return Epochs(done, of, loss if isinstance(loss, (int, float)) else None, at)


def epochs_kept(folder: Path) -> int:
    """The epochs behind an interrupted run from which it goes on; 0 for one that begins."""
    return read_epochs(folder).done if (folder / "resume.pth.tar").exists() else 0


@lru_cache(4096)
def _max_epoch(config: Path, written: int) -> int:
    """OPTIM.MAX_EPOCH of a config.yaml of that time."""
    optim = read_yaml(config).get("OPTIM")
    epochs = optim.get("MAX_EPOCH") if isinstance(optim, dict) else 0
    return epochs if isinstance(epochs, int) else 0


def tail(path: Path) -> str:
    """The end of a text. Raises OSError."""
    with open(path, "rb") as file:
        file.seek(max(0, os.fstat(file.fileno()).st_size - TAIL))
        return file.read().decode("utf-8", "replace")
