"""How far a run that trains is, from what it leaves after each epoch."""

from __future__ import annotations

import json
import os
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from statistics import median

from dassl.utils import UserError, read_yaml

TAIL = 1 << 14  # bytes from the end of a file that are looked at


@dataclass(frozen=True)
class Epochs:
    """The epochs of a run.

    Args:
        done: how many are behind it.
        of: in all; 0: unknown.
        loss: of the latest.
        at: when that was recorded, seconds since 1970.
        each: seconds that one takes all runs in the process, the median of the latest.
    """

    done: int = 0
    of: int = 0
    loss: float | None = None
    at: float = 0.0
    each: float | None = None


def read_epochs(folder: Path) -> Epochs:
    """Read the end of metrics.jsonl, and the config's OPTIM.MAX_EPOCH.

    A line that isn't whole yet is passed over.
    """
    done, of, loss, at, spent = 0, 0, None, 0.0, []
    with suppress(OSError):
        path = folder / "metrics.jsonl"
        written = path.stat().st_mtime
        for text in tail(path).splitlines():
            with suppress(ValueError):
                line = json.loads(text)
                if isinstance(line, dict) and isinstance(line.get("epoch"), int):
                    done, at, loss = line["epoch"], written, _number(line.get("loss"))
                    spent.append(_number(line.get("seconds")))
    with suppress(UserError, OSError):
        config = folder / "config.yaml"
        of = _max_epoch(config, config.stat().st_mtime_ns)
    known = [seconds for seconds in spent if seconds is not None]
    return Epochs(done, of, loss, at, median(known) if known else None)


def _number(value: object) -> float | None:
    return value if isinstance(value, (int, float)) else None


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
