"""What a protocol leaves beside its runs, for whoever watches it: OUTPUT/plans/<protocol>-<digest>.

plan.json       the command, and the chains with their runs
<host>-….json   a process that carries it out: its last sign of life, and what became of its runs

The runs' own folders say how far they are; these files say what there is to be, who is at it, and
why something failed. Paths are relative to OUTPUT: another machine may have it elsewhere.
"""

from __future__ import annotations

import hashlib
import os
import secrets
import shlex
import socket
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dassl.utils import UserError, disk_error, read_json, write_json
from experiments.watching.epochs import epochs_kept, read_epochs

if TYPE_CHECKING:
    from experiments.chains import Chain, Job
    from experiments.runner import Outcome

PLANS = "plans"
BEAT = 15.0  # seconds between two signs of life


def write_plan(output: Path, protocol: str, words: Sequence[str], chains: Sequence[Chain]) -> Path:
    """Write a plan's file; return its folder. The same runs have the same one.

    Raises OSError if it can't be written.
    """

    def inside(folder: Path) -> str:
        return Path(os.path.relpath(folder, output)).as_posix()

    listed = [
        {
            "name": chain.name,
            "jobs": [
                {"folder": inside(job.folder), "model": job.model and inside(job.model)}
                for job in chain.jobs
            ],
        }
        for chain in chains
    ]
    runs = sorted(job["folder"] for chain in listed for job in chain["jobs"])
    digest = hashlib.sha256("\n".join(runs).encode(errors="surrogateescape")).hexdigest()[:8]
    folder = output / PLANS / f"{protocol}-{digest}"
    command = shlex.join(["python", "scripts/run_protocol.py", *words])
    write_json({"protocol": protocol, "command": command, "chains": listed}, folder / "plan.json")
    return folder


class Recorder:
    """The file of one process that carries out a plan; it beats until it is closed.

    That it can't be written stops no run: a line says so, once.

    Args:
        folder: the plan's.
        width: how many chains it has under way at once.
    """

    def __init__(self, folder: Path, width: int = 1) -> None:
        self._output = folder.parents[1]
        host = socket.gethostname()
        self._path = folder / f"{host}-{os.getpid()}-{secrets.token_hex(2)}.json"
        self._content: dict[str, Any] = {
            "host": host,
            "process": os.getpid(),
            "width": width,
            "started": time.time(),
            "ended": None,
            "runs": {},
        }
        self._lock = threading.Lock()
        self._closed = threading.Event()
        self._told = False
        self._write()
        self._beats = threading.Thread(target=self._beat, daemon=True)
        self._beats.start()

    def begins(self, jobs: Sequence[Job]) -> None:
        """Runs have begun, side by side."""
        self._note(
            {
                job.folder: {
                    "state": "running",
                    "together": len(jobs),
                    "before": 0 if job.model else epochs_kept(job.folder),
                }
                for job in jobs
            }
        )

    def ends(self, outcome: Outcome) -> None:
        """A run has its outcome. Of one that was complete its folder says all."""
        if outcome.state == "skipped":
            return
        entry = {"state": outcome.state, "seconds": outcome.seconds, "reason": outcome.reason}
        if outcome.state == "done" and not outcome.job.model:
            entry["epochs"] = read_epochs(outcome.job.folder).of
        self._note({outcome.job.folder: entry})

    def close(self) -> None:
        """This process has done with the plan."""
        self._closed.set()
        self._beats.join()
        self._content["ended"] = time.time()
        self._write()

    def _note(self, entries: dict[Path, dict[str, Any]]) -> None:
        now = time.time()
        with self._lock:
            for folder, entry in entries.items():
                name = Path(os.path.relpath(folder, self._output)).as_posix()
                before = self._content["runs"].get(name, {}).get("before", 0)
                self._content["runs"][name] = {"before": before, **entry, "at": now}
        self._write()

    def _beat(self) -> None:
        while not self._closed.wait(BEAT):
            self._write()

    def _write(self) -> None:
        with self._lock:
            self._content["beat"] = time.time()
            try:
                write_json(self._content, self._path)
            except OSError as error:
                if not self._told:
                    self._told = True
                    print(f"nobody can watch this from elsewhere: {disk_error(error)}", flush=True)


def read_plans(output: Path) -> list[Path]:
    """Return the folders of an output folder's plans, as far as they are readable."""
    found = []
    for path in sorted((output / PLANS).glob("*/plan.json")):
        with suppress(UserError, OSError):
            _checked_plan(read_json(path, dict))
            found.append(path.parent)
    return found


def read_plan(folder: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Return a plan, and the processes that carry, or carried, it out.

    A process's file that isn't readable just now is passed over. Raises UserError for a plan's.
    """
    plan = _checked_plan(read_json(folder / "plan.json", dict))
    others = (path for path in sorted(folder.glob("*.json")) if path.name != "plan.json")
    return plan, [runner for path in others if (runner := _read_runner(path)) is not None]


def _checked_plan(plan: dict[str, Any]) -> dict[str, Any]:
    """Raises UserError for what is no plan: somebody else's file of that name."""
    try:
        chains = [
            {
                "name": str(chain["name"]),
                "jobs": [
                    {"folder": str(job["folder"]), "model": job["model"] and str(job["model"])}
                    for job in chain["jobs"]
                ],
            }
            for chain in plan["chains"]
        ]
        return {
            "protocol": str(plan["protocol"]),
            "command": str(plan["command"]),
            "chains": chains,
        }
    except (KeyError, TypeError) as error:
        raise UserError(f"no plan: {error}") from None


def _read_runner(path: Path) -> dict[str, Any] | None:
    numbers = (int, float)
    kinds = {"host": str, "process": int, "width": int, "started": numbers, "beat": numbers}
    try:
        content = read_json(path, dict)
    except (UserError, OSError):
        return None
    whole = all(isinstance(content.get(key), kind) for key, kind in kinds.items())
    runs = content.get("runs")
    if not whole or not isinstance(runs, dict):
        return None
    entries = {
        name: entry
        for name, entry in runs.items()
        if isinstance(entry, dict) and isinstance(entry.get("at"), numbers)
    }
    return {**content, "runs": entries}
