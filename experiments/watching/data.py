"""How far a plan is, in the words and numbers that a picture, a page and JSON share."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from experiments.watching.lines import duration, told_to_go
from experiments.watching.standing import (
    DONE,
    FAILED,
    LEFT,
    STATES,
    Kind,
    Run,
    Standing,
    Step,
    steps_under_way,
)


def headline(standing: Standing) -> str:
    """Return "base_to_new: 12 of 24 runs complete, 3 under way; about 2 min to go"."""
    return f"{standing.title}: {standing.told}{told_to_go(*standing.to_go())}"


def is_left(standing: Standing) -> bool:
    """Whether there is something to do, and nobody at it."""
    return not standing.goes_on and standing.count(DONE) < len(standing.runs)


def who_is_at_it(standing: Standing, output: Path) -> str:
    """Return a line on the processes that carry a plan out, or on there being none; or ""."""
    alive = [process for process in standing.processes if process.alive]
    if alive:
        hosts = sorted({process.host for process in alive})
        return f"{len(alive)} process{'es' if alive[1:] else ''} at it, on {', '.join(hosts)}"
    if not is_left(standing):
        return ""
    queued = ", but jobs may be queued (squeue --me)" if (output / "slurm").is_dir() else ""
    goes_on = "; the same command goes on from here:" if standing.command else ""
    return f"nobody is at it{queued}{goes_on}"


def kind_cells(standing: Standing, kind: Kind) -> dict[str, str]:
    """How many are complete and lost, the mean accuracy, the time of one and of what is left."""
    left, more = standing.to_go(kind)
    return {
        "done": f"{kind.count(DONE)}/{len(kind.runs)}",
        "failed": str(kind.count(FAILED) + kind.count(LEFT) or ""),
        "acc. %": "" if kind.accuracy is None else f"{kind.accuracy:.2f}",
        "one takes": "" if kind.each is None else duration(kind.each),
        "to go": "" if more or not left else duration(left),
    }


def step_cells(step: Step, now: float) -> dict[str, str]:
    """Whether it trains or tests, how many models, how far it is, and for how long."""
    run, number = step.slowest, f" {len(step.runs)}" if len(step.runs) > 1 else ""
    done, of = run.epochs.done, run.epochs.of
    return {
        "what": ("test" if step.tests else "train") + number,
        "epoch": f"{done}/{of}" if done and of else "",
        "loss": "" if step.loss is None else f"{step.loss:.3g}",
        "elapsed": "" if run.since is None else duration(now - run.since),
    }


def data_of(standing: Standing) -> dict[str, Any]:
    """Return all of it as plain values: times in seconds, accuracies in percent, None unknown."""
    seconds, unknown = standing.to_go()
    return {
        "title": standing.title,
        "command": standing.command,
        "read": time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(standing.now)),
        "goes_on": standing.goes_on,
        "states": {state: standing.count(state) for state in STATES},
        "to_go": {"seconds": seconds or None, "at_least": unknown},
        "kinds": [_kind(standing, kind) for kind in standing.kinds],
        "under_way": [_step(step) for step in steps_under_way(standing.runs)],
        "runs": [_run(run) for run in standing.runs],
        "processes": [vars(process) for process in standing.processes],
    }


def _kind(standing: Standing, kind: Kind) -> dict[str, Any]:
    left, unknown = standing.to_go(kind)
    return {
        "name": kind.name,
        "states": {state: kind.count(state) for state in STATES},
        "accuracy": kind.accuracy,
        "seconds_each": kind.each,
        "seconds_to_go": None if unknown else left,
    }


def _step(step: Step) -> dict[str, Any]:
    run = step.slowest
    return {
        "chain": step.chain,
        "stage": "test" if step.tests else "train",
        "runs": len(step.runs),
        "epoch": run.epochs.done,
        "epochs": run.epochs.of or None,
        "loss": step.loss,
        "since": run.since,
    }


def _run(run: Run) -> dict[str, Any]:
    names = ("name", "chain", "state", "accuracy", "seconds", "reason")
    return {name: getattr(run, name) for name in names}
