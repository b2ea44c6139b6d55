"""How far the runs of an output folder are, from what lies there. Nothing is written, or locked."""

from __future__ import annotations

import os
import re
import socket
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from dassl.utils import UserError, check_percent, read_json
from experiments.watching.epochs import Epochs, read_epochs, tail
from experiments.watching.records import BEAT, PLANS, read_plan, read_plans
from experiments.watching.standing import (
    DONE,
    FAILED,
    LEFT,
    RUNNING,
    STOPPED,
    WAITING,
    Process,
    Run,
    Standing,
)

SILENT = 6 * BEAT  # seconds without a sign of life after which a process counts as gone
TRACES = ("result.json", "metrics.jsonl", "config.yaml")  # what a run of ours leaves
LOCKS = Path("/proc/locks")


def standings(output: Path) -> list[Standing]:
    """Return every plan of an output folder, then what lies there without one.

    Raises UserError if there is no such folder, or nothing of ours in it.
    """
    if not output.is_dir():
        raise UserError(f"no such folder: {output}")
    now = time.time()
    found, planned = [], set()
    for folder in read_plans(output):
        found.append(standing_of(folder, now))
        planned |= {run.name for run in found[-1].runs}
    others = sorted(set(_run_folders(output)) - planned)
    if others:
        runs = [_run(output, {"folder": name}, name, {}, now) for name in others]
        found.append(Standing("runs without a plan" if found else "runs", "", runs, [], now))
    if not found:
        raise UserError(f"{output} holds no plan, which scripts/run_protocol.py leaves, and no run")
    return found


def standing_of(folder: Path, now: float | None = None) -> Standing:
    """How far the plan in a folder is. Raises UserError if there is none."""
    plan, runners = read_plan(folder)
    now = time.time() if now is None else now
    processes = [_process(runner, now) for runner in runners]
    entries = _entries(runners, processes)
    runs = {
        job["folder"]: _run(
            folder.parents[1], job, chain["name"], entries.get(job["folder"], {}), now
        )
        for chain in plan["chains"]
        for job in chain["jobs"]
    }
    return Standing(plan["protocol"], plan["command"], list(runs.values()), processes, now)


def _process(runner: dict[str, Any], now: float) -> Process:
    """What a process's file says of it, and whether it is alive as far as one can tell."""
    ended = runner.get("ended")
    ended = ended if isinstance(ended, (int, float)) else None
    alive = ended is None and now - runner["beat"] < SILENT
    if alive and runner["host"] == socket.gethostname() and Path("/proc/self").exists():
        alive = Path("/proc", str(runner["process"])).exists()
    what = (runner["host"], runner["process"], runner["width"], runner["beat"])
    return Process(*what, ended, alive)


def _entries(runners: list[dict[str, Any]], processes: list[Process]) -> dict[str, dict[str, Any]]:
    """The latest word on each run, with whether its process is alive, and whether another will try.

    What failed is tried again by a process that began after that, and is alive.
    """
    newest = max(
        (r["started"] for r, p in zip(runners, processes, strict=True) if p.alive), default=0.0
    )
    latest: dict[str, dict[str, Any]] = {}
    for runner, process in zip(runners, processes, strict=True):
        for name, entry in runner["runs"].items():
            if name not in latest or latest[name]["at"] <= entry["at"]:
                here = process.host == socket.gethostname()
                again = newest > entry["at"]
                latest[name] = {**entry, "alive": process.alive, "here": here, "again": again}
    return latest


def _run(output: Path, job: dict[str, Any], chain: str, entry: dict[str, Any], now: float) -> Run:
    """A run's state from its folder and the latest word on it, {} if there is none."""
    name, tests = job["folder"], bool(job.get("model"))
    folder = output / name
    said, at = entry.get("state", ""), entry.get("at", 0.0)
    if not said and not folder.exists():
        return Run(name, chain, WAITING, tests)
    accuracy, written = _result(folder)
    lost = said in (FAILED, LEFT)
    if accuracy is not None and not (lost and at > written):
        seconds = _number(entry.get("seconds"), None) if said == "done" else None
        before, epochs = (int(_number(entry.get(key), 0)) for key in ("before", "epochs"))
        return Run(
            name, chain, DONE, tests, accuracy, seconds, before=before, epochs=Epochs(of=epochs)
        )
    if lost:
        again = entry["again"]
        reason = "" if again else str(entry.get("reason") or "")
        return Run(name, chain, WAITING if again else said, tests, reason=reason)
    going = said == "running" and entry["alive"]
    if not going:
        going = _is_held(folder) if entry.get("here") and LOCKS.exists() else _stirs(folder, now)
    if not going and not said and not any((folder / trace).exists() for trace in TRACES):
        return Run(name, chain, WAITING, tests)
    epochs = Epochs() if tests else read_epochs(folder)
    return Run(
        name,
        chain,
        RUNNING if going else STOPPED,
        tests,
        since=at if said == "running" else None,
        together=max(1, int(_number(entry.get("together"), 1))),
        before=int(_number(entry.get("before"), 0)),
        epochs=epochs,
        reason="" if going else _last_error(folder),
    )


def _number(value: Any, otherwise: Any) -> Any:
    return value if isinstance(value, (int, float)) else otherwise


def _result(folder: Path) -> tuple[float | None, float]:
    """The accuracy of a complete run and when it was written; None without one."""
    path = folder / "result.json"
    with suppress(UserError, OSError):
        written = path.stat().st_mtime
        return check_percent(read_json(path, dict).get("accuracy"), "the accuracy"), written
    return None, 0.0


def _stirs(folder: Path, now: float) -> bool:
    """Whether something was written there a short while ago."""
    latest = 0.0
    for name in ("console.txt", "log.txt", "metrics.jsonl"):
        with suppress(OSError):
            latest = max(latest, (folder / name).stat().st_mtime)
    return now - latest < SILENT


def _is_held(folder: Path) -> bool:
    """Whether a process of this machine holds the run: the kernel tells, without touching it."""
    with suppress(OSError):
        inode = (folder / ".runner.lock").stat().st_ino
        return re.search(rf"FLOCK\s.*:{inode}\s", LOCKS.read_text()) is not None
    return False


def _last_error(folder: Path) -> str:
    """The run's own `error: …`, if that is the last thing it printed."""
    with suppress(OSError):
        lines = [line for line in tail(folder / "console.txt").splitlines() if line.strip()]
        if lines and lines[-1].startswith("error: "):
            return lines[-1].removeprefix("error: ")
    return ""


def _run_folders(output: Path) -> Sequence[str]:
    """The folders that hold runs of ours."""
    found = []
    for folder, folders, files in os.walk(output):
        folders[:] = [name for name in folders if Path(folder) != output or name != PLANS]
        if "config.yaml" in files and not {"result.json", "metrics.jsonl", "log.txt"}.isdisjoint(
            files
        ):
            found.append(Path(os.path.relpath(folder, output)).as_posix())
            folders[:] = []
    return found
