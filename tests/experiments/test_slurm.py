"""Plans on a stand-in for Slurm: submitted once, found again, and what went wrong is said."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from dassl.utils import UserError, write_json
from experiments import launch, slurm, slurm_client, slurm_task, slurm_waiting
from experiments.chains import Chain, Job
from experiments.processes import RunnerSettings
from experiments.slurm import Request, planned
from experiments.slurm_records import read_submissions
from tests.experiments import fake_slurm
from tests.experiments.fake_task import is_done

REAL = sys.executable
# As a task's Python: the task itself, and `train.py FOLDER WHAT [--and FOLDER WHAT]…`.
PYTHON = """\
#!/bin/bash
[[ $1 = -m ]] && exec {python} -m tests.experiments.fake_task "${{@:3}}"
shift
while [[ $# -gt 0 ]]; do
    echo started >> "$1/starts"
    [[ $2 = fail ]] && {{ echo "RuntimeError: no luck"; exit 1; }}
    echo '{{"accuracy": 50.0, "run": "ours"}}' > "$1/result.json"
    shift $(( $# > 2 ? 3 : 2 ))
done
"""


def printed(capsys) -> str:
    """What was printed, unfolded."""
    return re.sub(r"\n +", " ", capsys.readouterr().out)


class Place:
    """An output folder, and a Slurm of its own."""

    def __init__(self, folder: Path, state: Path, python: Path) -> None:
        self.folder, self.state = folder, state
        self.settings = RunnerSettings(python=str(python), attempts=1)

    def chain(self, name: str, what: str = "work") -> Chain:
        """A model, and its test."""
        train = Job(self.folder / name, (str(self.folder / name), what))
        other = self.folder / f"{name} new"
        return Chain(name, (train, Job(other, (str(other), "work"), train.folder)))

    def plan(self, chains: Sequence[Chain], **request):
        only_look = request.pop("only_look", False)
        return planned(chains, Request(**request), self.folder / "slurm", list, only_look)

    def submit(self, chains: Sequence[Chain], **request) -> slurm.SlurmPlan:
        with self.plan(chains, **request) as plan:
            plan.submit(self.settings)
        return plan

    def run(self, chains: Sequence[Chain], **request) -> dict[str, list]:
        """The outcomes of each chain."""
        seen = {}
        self.submit(chains, **request).wait(lambda chain, told: seen.update({chain.name: told}))
        return seen

    def states(self, chains: Sequence[Chain], **request) -> dict[str, list[str]]:
        return {
            name: [outcome.state for outcome in told]
            for name, told in self.run(chains, **request).items()
        }

    def say(self, name: str, text: str = "") -> None:
        """Tell the stand-in, or with nothing take it back."""
        (self.state / name).write_text(text) if text else (self.state / name).unlink()

    @property
    def calls(self) -> list[list[str]]:
        """The words of each job that was taken."""
        path = self.state / "calls"
        lines = path.read_text().splitlines() if path.exists() else []
        return [line.split("\t") for line in lines]

    def release(self) -> None:
        subprocess.run([REAL, fake_slurm.__file__, "release"], check=True)


@pytest.fixture
def place(tmp_path, monkeypatch) -> Place:
    """Its folder has an odd name: a quote, spaces, a dollar, what Slurm puts in for `%a`."""
    fake_slurm.put_in(tmp_path / "bin", tmp_path / "state")
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("FAKE_SLURM", str(tmp_path / "state"))
    monkeypatch.setattr("tuning.run.is_done", is_done)
    for module, name, value in (
        (slurm_waiting, "FIRST", 0.05),
        (slurm_waiting, "LAST", 0.2),
        (slurm, "AGAIN", 0.01),
    ):
        monkeypatch.setattr(module, name, value)
    python = tmp_path / "python"
    python.write_text(PYTHON.format(python=shlex.quote(REAL)))
    python.chmod(0o755)
    monkeypatch.setattr(slurm.sys, "executable", str(python))
    return Place(tmp_path / "o'dd $HOME %a\"", tmp_path / "state", python)


def test_is_submitted_once_and_not_when_complete(place, tmp_path):
    chains = [place.chain(name) for name in "abcde"]
    setup = (f"module() {{ echo loaded $1 >> {shlex.quote(str(tmp_path / 'setup'))}; }}",)
    found = place.states(chains, per_task=2, setup=(*setup, "module load cuda"))
    assert found == {chain.name: ["done"] * 2 for chain in chains}
    (words,) = place.calls
    assert "--array=0-2" in words and not any(word.startswith("--gres") for word in words)
    assert (tmp_path / "setup").read_text() == "loaded load\n" * 3
    again = place.states(chains)
    assert again == {chain.name: ["skipped"] * 2 for chain in chains}
    assert len(place.calls) == 1
    starts = [(job.folder / "starts").read_text() for chain in chains for job in chain.jobs]
    assert starts == ["started\n"] * 10
    assert place.states([*chains, place.chain("f")])["f"] == ["done"] * 2
    assert "--array=0-0" in place.calls[1]


def test_an_interrupted_plan_finds_its_jobs_again(place, capsys):
    chains = [place.chain(name) for name in "abc"]
    place.say("hold", "PartitionTimeLimit")
    plan = place.submit(chains)
    plan.leave()
    told = printed(capsys)
    assert "Slurm job 100: 3 tasks wait, PartitionTimeLimit (--time is above what the" in told
    assert "the same command finds it again, scancel 100 ends it" in told
    with place.plan(chains) as again:
        assert list(again.queued) == chains and not again.behind
    with place.plan([place.chain("new"), *chains]) as more:
        assert list(more.queued) == chains and [c.name for c in more.behind[frozenset()]] == ["new"]
    place.say("hold")
    threading.Timer(0.3, place.release).start()
    assert place.states(chains) == {name: ["done"] * 2 for name in "abc"}
    assert len(place.calls) == 1


def test_ctrl_c_leaves_the_jobs(place, capsys):
    def report(*_):
        raise KeyboardInterrupt

    plan = place.submit([place.chain("a")])
    with pytest.raises(KeyboardInterrupt):
        plan.wait(report)
    assert "Slurm goes on with 100; the same command finds it again" in printed(capsys)
    assert len(place.calls) == 1


def test_what_waits_for_runs_of_another_job_comes_after_it(place):
    place.say("hold", "Priority")
    chain = place.chain("a")
    place.submit([chain])
    further = Job(place.folder / "further", (str(place.folder / "further"), "work"), chain.jobs[0])
    place.submit([Chain("more", (*chain.jobs, further)), place.chain("b")])
    first, after, free = place.calls
    assert "--dependency=afterany:100" in after
    assert not any(word.startswith("--dependency") for word in (*first, *free))


@pytest.mark.parametrize("state", ["OUT_OF_MEMORY", "TIMEOUT", "NODE_FAIL", "CANCELLED"])
def test_a_task_that_ended_is_named_and_submitted_again(place, capsys, state):
    chains = [place.chain(name) for name in "ab"]
    place.say("end", state)
    outcome = place.run(chains)["b"][0]
    log = place.folder / "slurm" / "0001" / "1.log"
    assert outcome.state == "failed" and outcome.status == 1
    assert outcome.reason == f"Slurm task 100_1: {state} (Killed); log: {log}"
    place.say("end")
    capsys.readouterr()
    assert place.states(chains) == {name: ["done"] * 2 for name in "ab"}
    told = printed(capsys)
    assert f"Slurm job 100: 2 tasks left runs without a result ({state}), submitted" in told
    assert len(place.calls) == 2


def test_a_failed_run_says_why_and_others_of_its_task_go_on(place):
    found = place.run([place.chain("a", "fail"), place.chain("b")], per_task=2)
    assert [(o.state, o.reason) for o in found["a"]] == [
        ("failed", "RuntimeError: no luck"),
        ("left out", "the model it tests was not trained"),
    ]
    assert [o.state for o in found["b"]] == ["done", "done"]
    with place.plan([place.chain("a")]) as plan:
        assert plan.lost and plan.lost[0][0].why() == "RuntimeError: no luck"


def test_what_slurm_does_not_take_is_one_line(place):
    place.say("refuse", "Invalid account or account/partition combination specified")
    with pytest.raises(UserError, match="Slurm did not take the jobs: .* Invalid account"):
        place.submit([place.chain("a")])
    place.say("refuse")
    assert place.states([place.chain("a")]) == {"a": ["done"] * 2}
    assert len(place.calls) == 1


def test_a_job_that_was_taken_without_an_answer_is_found(place):
    place.say("lose", "yes")
    place.say("hold", "Priority")
    chain = place.chain("a")
    assert place.submit([chain]).jobs == ["100"]
    (place.folder / "slurm" / "0001" / "id").unlink()  # as if killed before it was written
    with place.plan([chain]) as plan:
        assert list(plan.queued) == [chain]
    assert place.submit([chain]).jobs == ["100"] and len(place.calls) == 1


def test_no_answer_means_neither_lost_nor_to_be_submitted(place, monkeypatch, capsys):
    place.say("hold", "Priority")
    chain = place.chain("a")
    plan = place.submit([chain])
    place.say("silent", "99")
    with pytest.raises(UserError, match="doesn't say which jobs it has: .*Unable to contact"):
        place.submit([chain])
    place.say("silent", "3")
    place.say("hold")
    seen = []
    threading.Timer(0.3, place.release).start()
    plan.wait(lambda _, outcomes: seen.extend(outcomes))
    assert [outcome.state for outcome in seen] == ["done"] * 2
    assert printed(capsys).count("Slurm gives no answer") == 1


def test_two_at_once_submit_once(place):
    place.say("hold", "Priority")
    chain, found = place.chain("a"), []

    def second():
        with place.plan([chain]) as plan:
            found.extend(plan.queued)

    with place.plan([chain]) as plan:
        thread = threading.Thread(target=second)
        thread.start()
        time.sleep(0.2)
        assert not found
        plan.submit(place.settings)
    thread.join()
    assert found == [chain]


def test_a_refused_run_is_not_submitted(place):
    chain = place.chain("a")
    write_json({"accuracy": 50.0, "run": "ours"}, chain.jobs[1].folder / "result.json")
    write_json({"accuracy": 50.0, "run": "theirs"}, chain.jobs[0].folder / "result.json")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tuning.run.is_done", refusing)
        (outcomes,) = place.run([chain]).values()
    assert [o.state for o in outcomes] == ["failed", "left out"] and not place.calls


def refusing(arguments):
    if not is_done(arguments):
        raise UserError("another run's")
    return True


def test_a_dry_run_shows_the_scripts_and_writes_nothing(place, capsys, tmp_path):
    chains = [place.chain(name) for name in "abc"]
    request = {"per_task": 2, "setup": ("module load x",)}
    with place.plan(chains, **request, at_once=1, only_look=True) as plan:
        plan.show(place.settings)
    told = printed(capsys)
    assert "6 runs in 3 chains: 0 complete or refused, 0 queued in Slurm" in told
    assert "3 chains, 2 in a task: 2 tasks, 1 at once at most; each has no GPU" in told
    assert "sbatch --parsable" in told and "--array=0-1%1" in told
    assert "# task 0: b\n# task 1: c" in told
    assert not place.folder.exists() and not place.calls
    place.submit(chains, **request)
    script = (place.folder / "slurm" / "0001" / "job.sh").read_text()
    assert script in told and "\nmodule load x\nexec " in script


def test_options(place):
    request = {"partition": "p", "account": "a", "qos": "q", "constraint": "c&d", "exclude": "n[1]"}
    place.say("gpus", "p|(null)\np|gpu:a100:4(S:0-1)")
    place.submit([place.chain("a")], **request, minutes=9, cpus=3, memory_gb=5)
    (words,) = place.calls
    wanted = {"time": 9, "cpus-per-task": 3, "mem": "5G", "gres": "gpu:1", **request}
    assert {f"--{name}={value}" for name, value in wanted.items()} <= set(words)


@pytest.mark.parametrize(
    ("answer", "partition", "there"),
    [
        ("gpu|gpu:2\ncpu*|(null)", "", False),
        ("gpu*|craynetwork:4,gpu:h100:8\ncpu|(null)", "", True),
        ("x|gpu:1\nx|(null)", "x", True),
        ("x|gpus_of_old:1", "x", False),
    ],
)
def test_whether_a_partition_has_gpus(place, answer, partition, there):
    place.say("gpus", answer)
    assert slurm_client.has_gpus(partition) is there


def test_an_array_is_no_longer_than_slurm_lets_it(place, capsys):
    place.say("hold", "Priority")
    place.say("limit", "2")
    place.submit([place.chain(name) for name in "abcde"])
    assert "--array=0-1" in place.calls[0]
    assert "an array has 2 tasks at most: 3 chains in each" in printed(capsys)


def test_what_slurm_has_forgotten(place):
    tasks = [("7", 0), ("7", 1)]
    assert {s.name for s in slurm_client.states(tasks).values()} == {slurm_client.UNKNOWN}
    place.say("past", "7_0|TIMEOUT\n7_[1-3%2]|CANCELLED by 0")
    names = [state.name for state in slurm_client.states(tasks).values()]
    assert names == ["TIMEOUT", "CANCELLED"]
    place.say("past", "7_0|RUNNING\n7_1|COMPLETED")  # of a job that was lost to the accounting
    assert all(state.ended for state in slurm_client.states(tasks).values())


def test_without_slurm(place, monkeypatch, tmp_path, capsys):
    """Nothing can be submitted; what would be can be seen."""
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match="no sbatch on this machine"), place.plan([]):
        pass
    with place.plan([place.chain("a")], only_look=True) as plan:
        plan.show(place.settings)
    told = printed(capsys)
    assert "Slurm doesn't say whether the partition has GPUs: one a task" in told
    assert "1 task, 1 at once at most; each has 1 GPU" in told


def test_a_changed_record_is_said(place):
    write_json({"name": "x"}, place.folder / "slurm" / "0001" / "tasks.json")
    with pytest.raises(UserError, match="is no record of Slurm jobs"):
        read_submissions(place.folder / "slurm")


def test_a_task_takes_the_cores_it_has(monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setenv("SLURM_CPUS_PER_TASK", "6")
    how = {"gpus": 0, "per_gpu": 1, "jobs": 0}
    assert slurm_task.slots(how) == [{"OMP_NUM_THREADS": "6"}]
    assert slurm_task.slots({**how, "jobs": 3}) == [{"OMP_NUM_THREADS": "2"}] * 3


def test_the_command(place, tmp_path, capsys):
    words = f"base_to_new --trainers CoOp --datasets mini_shapes --seeds 1-3 --root {tmp_path}"
    options = ["--cluster", "slurm", "--output", str(place.folder), "--dry-run", "--qos", "long"]
    options += ["--setup", "one", "--setup", "two words", "--gpus-per-job", "2", "--time", "60"]
    assert launch.launch(launch.parse_args([*words.split(), *options])) == 0
    told = printed(capsys)
    assert "1 chain, 1 in a task: 1 task, 1 at once at most; each has 2 GPUs, 8 cores" in told
    assert "--qos=long" in told and "--gres=gpu:2" in told and "\none\ntwo words\nexec" in told
    assert "# task 0: CoOp mini_shapes 16 shots seed 1|2|3" in told
