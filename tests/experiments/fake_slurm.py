"""A stand-in for Slurm's programs: `… PROGRAM ARGUMENTS`, with its state in the folder $FAKE_SLURM.

Tasks run at once in the background, unless a file there says otherwise:

hold      they wait, for the reason in it, until `release`
end       they end in the state in it, before they do anything
refuse    sbatch fails with the words in it
lose      sbatch takes the job and fails all the same
silent    squeue fails as often as the number in it says
gpus      what sinfo prints
limit     how many tasks an array may have
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

STATE = Path(os.environ.get("FAKE_SLURM", "."))
TASK = """
echo 'RUNNING|None' > "$1"
SLURM_JOB_ID=$2 SLURM_ARRAY_TASK_ID=$3 SLURM_CPUS_PER_TASK=2 bash "$4" >> "$5" 2>&1
[ $? = 0 ] && echo 'COMPLETED|None' > "$1" || echo 'FAILED|NonZeroExitCode' > "$1"
"""


def said(name: str) -> str:
    path = STATE / name
    return path.read_text().strip() if path.exists() else ""


def fail(words: str) -> None:
    print(words, file=sys.stderr)
    raise SystemExit(1)


def sbatch(words: list[str]) -> None:
    if why := said("refuse"):
        fail(f"sbatch: error: Batch job submission failed: {why}")
    *options, script = words
    with open(STATE / "calls", "a") as calls:
        print(*words, sep="\t", file=calls)
    value = dict(option.removeprefix("--").partition("=")[::2] for option in options)
    first, last = map(int, value["array"].partition("%")[0].split("-"))
    job = str(100 + len(list(STATE.glob("*.job"))))
    (STATE / f"{job}.job").write_text(value["job-name"])
    for i in range(first, last + 1):
        log = value["output"].replace("%%", "\0").replace("%a", str(i)).replace("\0", "%")
        task = STATE / f"{job}_{i}.task"
        (STATE / f"{job}_{i}.words").write_text("\n".join([job, str(i), script, log]))
        task.write_text("PENDING|None")
        if state := said("end"):
            Path(log).write_text("Killed\n")
            task.write_text(f"{state}|None")
        elif reason := said("hold"):
            task.write_text(f"PENDING|{reason}")
        else:
            begin(task)
    if (STATE / "lose").exists():
        fail("sbatch: error: Socket timed out on send/recv operation")
    print(f"{job};cluster" if "parsable" in value else f"Submitted batch job {job}")


def begin(task: Path) -> None:
    words = task.with_suffix(".words").read_text().split("\n")
    nothing = subprocess.DEVNULL
    subprocess.Popen(
        ["bash", "-c", TASK, "task", str(task), *words],
        **{"stdin": nothing, "stdout": nothing, "stderr": nothing, "start_new_session": True},
    )


def release(words: list[str]) -> None:
    for task in STATE.glob("*.task"):
        if task.read_text().startswith("PENDING"):
            begin(task)


def squeue(words: list[str]) -> None:
    left = int(said("silent") or 0)
    if left:
        (STATE / "silent").write_text(str(left - 1))
        fail("slurm_load_jobs error: Unable to contact slurm controller (connect failure)")
    value = dict(option.removeprefix("--").partition("=")[::2] for option in words)
    if name := value.get("name"):
        print(*(path.stem for path in STATE.glob("*.job") if path.read_text() == name), sep="\n")
        return
    jobs = value["jobs"].split(",")
    if len(jobs) == 1 and not (STATE / f"{jobs[0]}.job").exists():
        fail("slurm_load_jobs error: Invalid job id specified")
    for task in STATE.glob("*.task"):
        if task.stem.partition("_")[0] in jobs:
            print(f"{task.stem}|{task.read_text().strip()}")


def sacct(words: list[str]) -> None:
    if not (past := said("past")):
        fail("Slurm accounting storage is disabled")
    print(past)


def sinfo(words: list[str]) -> None:
    print(said("gpus") or "cpu*|(null)")


def scontrol(words: list[str]) -> None:
    print(f"MaxArraySize            = {said('limit') or 1001}")


def put_in(folder: Path, state: Path) -> None:
    """Make the programs, for a PATH."""
    folder.mkdir()
    state.mkdir()
    names = re.findall(r"^def (s\w+)\(words", Path(__file__).read_text(), re.MULTILINE)
    for name in names:
        path = folder / name
        path.write_text(f'#!/bin/sh\nexec "{sys.executable}" "{__file__}" {name} "$@"\n')
        path.chmod(0o755)


if __name__ == "__main__":
    globals()[sys.argv[1]](sys.argv[2:])
