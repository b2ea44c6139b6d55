"""What was given to Slurm, and what became of it: OUTPUT/slurm/NUMBER, a folder per submission.

tasks.json   the chains of each task, and how they are to be run
job.sh       the script that each task runs
id           Slurm's number of the job; missing where this side was cut off before it came
N.log        what task N printed
N.json       what has become of its runs so far, as task N found it

Nothing here is ever written anew but N.json, by a task that Slurm starts again.
"""

from __future__ import annotations

import os
import secrets
import shlex
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dassl.utils import UserError, atomic_write, read_json, write_json
from experiments.chains import Chain, Job
from experiments.processes import RunnerSettings
from experiments.protocols import ROOT
from experiments.runner import Outcome, outcome_of

DONE = ("done", "skipped")


@dataclass(frozen=True)
class Task:
    """A task of a job array. `runs`: the folders of its runs, absolute."""

    submission: Path
    job: str
    index: int
    runs: frozenset[Path]

    @property
    def place(self) -> tuple[str, int]:
        """Where it is in Slurm."""
        return self.job, self.index

    @property
    def log(self) -> Path:
        """What it printed."""
        return self.submission / f"{self.index}.log"

    def why(self) -> str:
        """Why runs of it have no result: what it says of the first, else the end of its log."""
        reasons = (each["reason"] for each in self.recorded().values())
        return next(filter(None, reasons), "") or self._last_words() or "it printed nothing"

    def _last_words(self) -> str:
        with suppress(OSError), open(self.log, "rb") as file:
            file.seek(max(0, os.path.getsize(self.log) - 4096))
            lines = file.read().decode(errors="replace").split("\n")
            return next((line.strip() for line in reversed(lines) if line.strip()), "")
        return ""

    def recorded(self) -> dict[Path, dict[str, Any]]:
        """What it says of its runs so far, by folder."""
        with suppress(UserError, OSError):
            told = read_json(self.submission / f"{self.index}.json", list)
            return {absolute(each["folder"]): each for each in told}
        return {}


@dataclass(frozen=True)
class Submission:
    """A job array that was given to Slurm, or nearly. `job`: its number, "" if that isn't known."""

    folder: Path
    name: str
    job: str
    runs: tuple[frozenset[Path], ...]

    @property
    def tasks(self) -> list[Task]:
        """Its tasks."""
        return [Task(self.folder, self.job, i, runs) for i, runs in enumerate(self.runs)]

    def note(self, job: str) -> Submission:
        """Write down the number that Slurm gave."""
        with atomic_write(self.folder / "id") as file:
            file.write(job + "\n")
        return Submission(self.folder, self.name, job, self.runs)


def absolute(folder: str | os.PathLike) -> Path:
    """A folder's name under which it is known here, wherever it was given relative to."""
    return Path(os.path.abspath(ROOT / folder))


def read_submissions(folder: Path) -> list[Submission]:
    """What was submitted from `folder`, in order. Raises UserError for a file that was changed."""
    found = []
    for number in _numbers(folder):
        path = folder / number / "tasks.json"
        if not path.exists():  # cut off before it was written
            continue
        content, id_file = read_json(path, dict), path.with_name("id")
        try:
            runs = tuple(
                frozenset(absolute(run["folder"]) for chain in task for run in chain["runs"])
                for task in content["tasks"]
            )
            name = str(content["name"])
        except (KeyError, TypeError) as error:
            raise UserError(f"{path} is no record of Slurm jobs: {error!r}") from None
        job = id_file.read_text().strip() if id_file.exists() else ""
        if job and not job.isdecimal():
            raise UserError(f"{id_file} holds no number of a Slurm job: {job[:40]!r}")
        found.append(Submission(path.parent, name, job, runs))
    return found


def next_folder(folder: Path) -> Path:
    """The folder of the next submission."""
    return folder / f"{int((_numbers(folder) or ['0'])[-1]) + 1:04}"


def _numbers(folder: Path) -> list[str]:
    """The names of the submissions' folders, in order."""
    names = (path.name for path in folder.glob("[0-9]*") if path.name.isdecimal())
    return sorted(names, key=int)


def prepare(
    folder: Path, tasks: Sequence[Sequence[Chain]], how: dict[str, Any], setup: Sequence[str]
) -> Submission:
    """Write what a submission needs. `how`: as `read_task` returns it."""
    name = f"dept-{secrets.token_hex(4)}"
    listed = [[_plain(chain) for chain in task] for task in tasks]
    with atomic_write(folder / "job.sh") as file:
        file.write(script(folder, how, setup))
    # Last: what makes it a submission.
    write_json({"name": name, "how": how, "tasks": listed}, folder / "tasks.json")
    runs = tuple(
        frozenset(absolute(job.folder) for chain in task for job in chain.jobs) for task in tasks
    )
    return Submission(folder, name, "", runs)


def script(folder: Path, how: dict[str, Any], setup: Sequence[str]) -> str:
    """The job's script. It becomes the Python program: that gets Slurm's signals itself."""
    command = shlex.join([how["launcher"], "-m", "experiments.slurm_task", str(absolute(folder))])
    return "\n".join(
        [
            "#!/bin/bash",
            f"cd {shlex.quote(str(ROOT))} || exit",
            *setup,
            f'exec {command} "$SLURM_ARRAY_TASK_ID"',
            "",
        ]
    )


def read_task(folder: Path, index: int) -> tuple[list[Chain], dict[str, Any]]:
    """The chains of a task, and how they go."""
    content = read_json(folder / "tasks.json", dict)
    return [_chain(chain) for chain in content["tasks"][index]], content["how"]


def write_outcomes(folder: Path, index: int, outcomes: Iterable[Outcome]) -> None:
    """Tell what has become of a task's runs so far."""
    told = [
        {
            "folder": str(o.job.folder),
            "state": o.state,
            "seconds": o.seconds,
            "reason": o.reason,
            "status": o.status,
        }
        for o in outcomes
    ]
    write_json(told, folder / f"{index}.json")


def outcome(job: Job, told: dict[str, Any]) -> Outcome:
    """What a task said of a run."""
    if told["state"] in DONE:
        return outcome_of(job, told["state"], told["seconds"])
    return Outcome(job, told["state"], told["seconds"], told["reason"], status=told["status"])


def settings_of(how: dict[str, Any]) -> RunnerSettings:
    """How the runs of a task go."""
    plan = how["plan"] and Path(how["plan"])
    return RunnerSettings(how["python"], how["attempts"], how["show"], tuple(how["warm"]), plan)


def _plain(chain: Chain) -> dict[str, Any]:
    runs = [
        {
            "folder": str(job.folder),
            "model": job.model and str(job.model),
            "teacher": job.teacher and str(job.teacher),
            "arguments": job.arguments,
        }
        for job in chain.jobs
    ]
    return {"name": chain.name, "runs": runs}


def _chain(told: dict[str, Any]) -> Chain:
    jobs = (
        Job(
            Path(run["folder"]),
            tuple(run["arguments"]),
            run["model"] and Path(run["model"]),
            teacher=run["teacher"] and Path(run["teacher"]),
        )
        for run in told["runs"]
    )
    return Chain(told["name"], tuple(jobs))
