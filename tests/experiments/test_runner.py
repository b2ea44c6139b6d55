"""The runner with a stand-in for `python train.py`: what is run, skipped, repeated, left."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import ExitStack, closing
from dataclasses import replace
from pathlib import Path

import pytest

from dassl.utils import UserError, locks
from experiments.chains import Chain, Job
from experiments.runner import (
    Held,
    Processes,
    RunnerSettings,
    hold,
    is_complete,
    local_slots,
    run_chain,
    run_local,
)
from experiments.workers import Workers

ROOT = Path(__file__).resolve().parents[2]
# Called as `<this> train.py <folder> <what to do>`,
# and for runs side by side `… --and <folder> <what to do>`.
STAND_IN = """\
#!/bin/bash
meet() {  # wait, not for ever, until four runs have started
    for i in {1..1500}; do
        [[ $(ls "$1"/../*/starts | wc -l) -ge 4 ]] && return || sleep .02
    done
    exit 1
}
shift
together=$(( ($# + 1) / 3 ))
while [[ $# -gt 0 ]]; do
    echo "started with $together" >> "$1/starts"
    case "$2" in
        fail) echo "Traceback"; echo "RuntimeError: no luck"; exit 1 ;;
        mistake) echo "error: no such file"; exit 2 ;;
        once) [[ $(wc -l < "$1/starts") -gt 1 ]] || exit 1 ;;
        slow) sleep 1 ;;
        gate) read -r < "$1/gate" ;;
        meet) meet "$1" ;;
        die) kill -9 $$ ;;
        fall) [[ $(wc -l < "$1/starts") -gt 1 ]] || kill -9 $$ ;;
    esac
    echo '{"accuracy": 50.0, "run": "ours"}' > "$1/result.json"
    shift $(( $# > 2 ? 3 : 2 ))
done
"""


@pytest.fixture(params=["processes", "workers"])
def settings(request, tmp_path, monkeypatch) -> RunnerSettings:
    def is_done(arguments):
        if json.loads((Path(arguments[0]) / "result.json").read_text())["run"] != "ours":
            raise UserError("it holds another run's result")
        return True

    monkeypatch.setattr("tuning.run.is_done", is_done)
    path = tmp_path / "stand-in"
    path.write_text(STAND_IN)
    path.chmod(0o755)
    warm = (sys.executable, "-m", "tests.experiments.stand_in_worker", str(path))
    return RunnerSettings(python=str(path), warm=warm if request.param == "workers" else ())


def job(folder: Path, what: str = "work", model: Path | None = None) -> Job:
    return Job(folder, (str(folder), what), model)


def starts(folder: Path) -> int:
    path = folder / "starts"
    return len(path.read_text().splitlines()) if path.is_file() else 0


def run(settings: RunnerSettings, *jobs: Job):
    with closing(Workers(settings, {}) if settings.warm else Processes()) as processes:
        return run_chain(Chain("chain", jobs), settings, {}, processes)


@pytest.mark.parametrize(
    ("what", "state", "tries", "reason"),
    [
        ("work", "done", 1, ""),
        ("once", "done", 2, ""),
        ("fall", "done", 2, ""),
        ("fail", "failed", 2, "RuntimeError: no luck"),
        ("mistake", "failed", 1, "no such file"),
        ("die", "failed", 2, "killed by SIGKILL"),
    ],
)
def test_a_failing_run_is_tried_twice_a_mistake_once(
    tmp_path, settings, what, state, tries, reason
):
    (outcome,) = run(settings, job(tmp_path / "run", what))
    assert (outcome.state, outcome.reason) == (state, reason)
    assert starts(tmp_path / "run") == tries
    assert (outcome.accuracy == 50.0) == (state == "done")


def test_complete_runs_are_skipped(tmp_path, settings):
    run(settings, job(tmp_path / "run"))
    (again,) = run(settings, job(tmp_path / "run"))
    assert again.state == "skipped" and again.accuracy == 50.0 and starts(tmp_path / "run") == 1


def test_another_configurations_result_is_left_alone(tmp_path, settings):
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "result.json").write_text(json.dumps({"run": "theirs", "accuracy": 1}))
    (outcome,) = run(settings, job(folder))
    assert outcome.state == "failed" and "another run's" in outcome.reason
    assert "theirs" in (folder / "result.json").read_text() and starts(folder) == 0
    with pytest.raises(UserError):
        is_complete(job(folder))


def test_without_its_model_a_test_is_left_out_but_not_its_siblings(tmp_path, settings):
    train, lost = tmp_path / "train", tmp_path / "lost"
    tests = [job(tmp_path / name, what, train) for name, what in (("a", "fail"), ("b", "work"))]
    assert [o.state for o in run(settings, job(train), *tests)] == ["done", "failed", "done"]
    learns = replace(job(tmp_path / "d"), teacher=lost)
    of_it = (job(tmp_path / "c", model=lost), learns, job(tmp_path / "e", model=learns.folder))
    outcomes = run(settings, job(lost, "fail"), *of_it)
    assert [o.state for o in outcomes] == ["failed", "left out", "left out", "left out"]
    assert ["teacher" in o.reason for o in outcomes[1:]] == [False, True, False]
    assert not any(starts(tmp_path / name) for name in "cde")


def test_a_step_goes_in_one_process(tmp_path, settings):
    jobs = [job(tmp_path / f"model{i}") for i in range(3)]
    tests = [job(tmp_path / f"test{i}", model=jobs[i].folder) for i in range(3)]
    outcomes = run(settings, *jobs, *tests)
    assert [o.job for o in outcomes] == [*jobs, *tests] and {o.state for o in outcomes} == {"done"}
    for each in (*jobs, *tests):
        assert (each.folder / "starts").read_text() == "started with 3\n"
    assert {o.state for o in run(settings, *jobs, *tests)} == {"skipped"}


def test_what_failed_together_is_tried_alone_and_the_rest_is_kept(tmp_path, settings, capsys):
    jobs = [job(tmp_path / str(i), what) for i, what in enumerate(("work", "fail", "work", "once"))]
    tests = [job(tmp_path / f"test{i}", model=jobs[i].folder) for i in (0, 1)]
    outcomes = run(settings, *jobs, *tests)
    states = [outcome.state for outcome in outcomes]
    assert states == ["done", "failed", "done", "done", "done", "left out"]
    # The first was done together; those behind the failing one were begun alone.
    assert [starts(each.folder) for each in jobs] == [1, 3, 1, 2]
    assert "failed together (RuntimeError: no luck)" in capsys.readouterr().out


def test_without_a_python_the_runs_fail_and_the_others_go_on(tmp_path):
    nowhere = RunnerSettings(python=str(tmp_path / "nowhere"))
    outcomes = run(nowhere, *(job(tmp_path / str(i)) for i in range(2)))
    assert [o.state for o in outcomes] == ["failed", "failed"]
    assert all("nowhere" in o.reason for o in outcomes)


def test_each_run_has_its_own_reason(tmp_path, settings):
    jobs = [job(tmp_path / what, what) for what in ("mistake", "fail")]
    assert [o.reason for o in run(settings, *jobs)] == ["no such file", "RuntimeError: no luck"]


def test_a_run_that_another_process_has_is_left_to_the_end(tmp_path, settings):
    jobs = [job(tmp_path / str(i)) for i in range(3)]
    with hold(jobs[1].folder), pytest.raises(Held), hold(jobs[1].folder):
        pass
    other = start_runner(settings, jobs[1].folder)
    while not starts(jobs[1].folder):
        time.sleep(0.02)
    outcomes, chain = [], Chain("chain", tuple(jobs))
    run_local([chain], settings, [{}], lambda _, told: outcomes.extend(told))
    other.wait(timeout=120)
    assert [o.state for o in outcomes] == ["done", "skipped", "done"]
    assert (jobs[0].folder / "starts").read_text() == "started with 2\n"


def test_runs_that_are_complete_are_left_out_of_a_step(tmp_path, settings):
    jobs = [job(tmp_path / str(i)) for i in range(3)]
    run(settings, jobs[1])
    assert [o.state for o in run(settings, *jobs)] == ["done", "skipped", "done"]
    assert (jobs[0].folder / "starts").read_text() == "started with 2\n"
    (jobs[2].folder / "result.json").write_text('{"run": "theirs", "accuracy": 1}')
    (jobs[0].folder / "result.json").unlink()
    assert [o.state for o in run(settings, *jobs)] == ["done", "skipped", "failed"]


def test_chains_go_side_by_side_and_past_failures(tmp_path, settings):
    """Each of the three others ends only once all four are under way."""
    chains = [
        Chain(str(i), (job(tmp_path / str(i), what),))
        for i, what in enumerate(("meet", "fail", "meet", "meet"))
    ]
    seen = {}
    run_local(
        chains, settings, [{}] * 4, lambda chain, outcomes: seen.update({chain.name: outcomes})
    )
    assert [seen[str(i)][0].state for i in range(4)] == ["done", "failed", "done", "done"]


def test_a_killed_run_is_tried_again_and_no_other(tmp_path, settings):
    chains = [
        Chain(name, (job(tmp_path / name, what), job(tmp_path / f"{name}2", model=tmp_path / name)))
        for name, what in (("a", "slow"), ("b", "fall"))
    ]
    seen = []
    run_local(chains, settings, [{}] * 2, lambda chain, outcomes: seen.extend(outcomes))
    assert [outcome.state for outcome in seen] == ["done"] * 4
    assert [starts(tmp_path / name) for name in ("a", "a2", "b", "b2")] == [1, 1, 2, 1]


@pytest.mark.parametrize("settings", ["workers"], indirect=True)
def test_a_worker_has_a_chain_and_on_a_gpu_one_after_the_other(tmp_path, settings):
    def workers(folder: Path, slot: dict[str, str], what: str) -> list[list[str]]:
        """Which processes the runs of two chains of two went in, one chain after the other."""
        chains = [
            Chain(name, (job(folder / name, what), job(folder / f"{name}2", model=folder / name)))
            for name in "ab"
        ]
        run_local(chains, settings, [slot], lambda *_: None)
        names = ("a", "a2", "b", "b2")
        return [(folder / name / "worker").read_text().split() for name in names]

    (a,), (a2,), (b,), (b2,) = workers(tmp_path / "cpu", {}, "work")
    assert a == a2 != b == b2
    gpu = {"CUDA_VISIBLE_DEVICES": "0"}
    assert len({each for (each,) in workers(tmp_path / "gpu", gpu, "work")}) == 1
    (a, again), (a2,), (b, anew), (b2,) = workers(tmp_path / "failing", gpu, "once")
    assert a != again == a2 == b != anew == b2


@pytest.mark.parametrize("settings", ["workers"], indirect=True)
@pytest.mark.parametrize("warm", ["false", "nowhere"])
def test_without_workers_each_run_has_its_own_process(tmp_path, settings, warm, capsys):
    settings = replace(settings, warm=(warm,))
    assert [o.state for o in run(settings, job(tmp_path / "a"))] == ["done"]
    assert capsys.readouterr().out.startswith("no workers (")


RUNNER = """\
import sys
from pathlib import Path
from dassl.utils import heed_signals
from experiments.chains import Chain, Job
from experiments.runner import RunnerSettings, run_local
heed_signals()
python, what, warm, *folders = sys.argv[1:]
chains = [Chain(f, (Job(Path(f), (f, what), "ours"),)) for f in folders]
settings = RunnerSettings(python, warm=tuple(warm.split()))
run_local(chains, settings, [{}], lambda chain, o: print(o[0].state, flush=True))
"""


def test_no_room_for_a_runs_folder_is_its_reason(tmp_path, settings, monkeypatch):
    def full(path, *args, **kwargs):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))

    monkeypatch.setattr(Path, "mkdir", full)
    (outcome,) = run(settings, job(tmp_path / "a"))
    assert (outcome.state, outcome.status) == ("failed", 1)
    assert outcome.reason.startswith(f"cannot write {tmp_path}/a: No space left on device (")


@pytest.mark.parametrize("accuracy", ["NaN", "101", '"80"', "null"])
def test_a_result_that_is_none_is_not_complete(tmp_path, settings, accuracy):
    one = job(tmp_path / "a")
    run(settings, one)
    text = f'{{"run": "ours", "accuracy": {accuracy}}}'
    (one.folder / "result.json").write_text(text)
    (outcome,) = run(settings, one)
    assert outcome.state == "done" and starts(one.folder) == 2


def start_runner(settings: RunnerSettings, *folders: Path, what: str = "slow") -> subprocess.Popen:
    words = settings.python, what, " ".join(settings.warm), *map(str, folders)
    command = [sys.executable, "-c", RUNNER, *words]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
    return subprocess.Popen(command, cwd=ROOT, text=True, **pipes)


def test_two_runners_at_once_do_each_run_once(tmp_path, settings):
    folders = [tmp_path / "a", tmp_path / "b"]
    runners = [start_runner(settings, *folders) for _ in range(2)]
    for runner in runners:
        assert runner.wait(timeout=120) == 0
    assert [starts(folder) for folder in folders] == [1, 1]


def test_a_runner_passes_on_to_what_nobody_has_and_comes_back(tmp_path, settings, capsys):
    """The first chain is another's until the two others are done here; its test is then ours."""
    model, test = job(tmp_path / "a"), job(tmp_path / "test", model=tmp_path / "a")
    chains = [Chain("a", (model, test))]
    chains += [Chain(name, (job(tmp_path / name),)) for name in "bc"]
    stack = ExitStack()
    stack.enter_context(hold(model.folder))
    seen = []

    def report(chain, outcomes):
        seen.append((chain.name, [o.state for o in outcomes]))
        if len(seen) == 2:
            (model.folder / "result.json").write_text('{"run": "ours", "accuracy": 9}')
            threading.Timer(0.2, stack.close).start()

    run_local(chains, settings, [{}], report)
    assert seen == [("b", ["done"]), ("c", ["done"]), ("a", ["skipped", "done"])]
    assert starts(model.folder) == 0 and starts(test.folder) == 1


def test_a_held_chains_other_runs_are_done_once(tmp_path, settings, capsys):
    jobs = [job(tmp_path / str(i)) for i in range(3)]
    stack = ExitStack()
    stack.enter_context(hold(jobs[0].folder))
    threading.Timer(1.2, stack.close).start()
    seen = {}
    chains = [Chain("chain", tuple(jobs))]
    run_local(chains, settings, [{}] * 2, lambda chain, o: seen.update({chain.name: o}))
    assert [o.state for o in seen["chain"]] == ["done"] * 3
    assert [starts(each.folder) for each in jobs] == [1, 1, 1]
    told = f"waiting for another process that runs {jobs[0].folder}"
    assert " ".join(capsys.readouterr().out.split()).count(told) == 1


def test_a_held_chain_that_fails_elsewhere_is_tried_here(tmp_path, settings):
    one = job(tmp_path / "a")
    stack = ExitStack()
    stack.enter_context(hold(one.folder))
    threading.Timer(0.2, stack.close).start()
    seen = []
    run_local([Chain("a", (one,))], settings, [{}], lambda chain, outcomes: seen.extend(outcomes))
    assert [o.state for o in seen] == ["done"]


def test_without_locks_runs_go_and_that_is_said(tmp_path, settings, monkeypatch, capsys):
    def none(file, how):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr("fcntl.flock", none)
    locks._told.clear()
    outcomes = run(settings, *(job(tmp_path / name) for name in "ab"))
    assert [o.state for o in outcomes] == ["done", "done"]
    assert capsys.readouterr().out.count("has no locks (No locks available)") == 1


def test_a_killed_runners_run_is_waited_for_and_the_rest_taken_up(tmp_path, settings):
    folders = [tmp_path / "a", tmp_path / "b"]
    runner = start_runner(settings, *folders)
    while not starts(folders[0]):
        assert runner.poll() is None
        time.sleep(0.02)
    runner.send_signal(signal.SIGKILL)
    runner.wait()
    again = start_runner(settings, *folders)
    out, _ = again.communicate(timeout=120)
    assert again.returncode == 0
    assert all((folder / "result.json").is_file() for folder in folders)
    assert [starts(folder) for folder in folders] == [1, 1], out


@pytest.mark.parametrize("by", [signal.SIGINT, signal.SIGTERM])
def test_an_interruption_ends_the_runs_under_way(tmp_path, settings, by):
    folders = [tmp_path / "a", tmp_path / "b"]
    folders[0].mkdir()
    gate = folders[0] / "gate"  # the run waits until it is opened
    os.mkfifo(gate)
    runner = start_runner(settings, *folders, what="gate")
    while not starts(folders[0]):
        assert runner.poll() is None
        time.sleep(0.02)
    runner.send_signal(by)
    try:
        runner.wait(timeout=60)
        with pytest.raises(OSError, match="No such device"):  # nobody waits there any more
            os.close(os.open(gate, os.O_WRONLY | os.O_NONBLOCK))
    finally:
        with open(gate, "r+b", buffering=0) as opened:
            opened.write(b"\n")
        runner.kill()
    assert not (folders[0] / "result.json").exists() and starts(folders[1]) == 0


def test_slots(monkeypatch):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    gpu = [slot["CUDA_VISIBLE_DEVICES"] for slot in local_slots(gpus=2, per_gpu=2, jobs=0)]
    assert gpu == ["0", "1", "0", "1"]
    assert local_slots(0, 1, 0) == [{"OMP_NUM_THREADS": "2"}] * 4
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5,7")
    assert [s["CUDA_VISIBLE_DEVICES"] for s in local_slots(2, 1, 0)] == ["5", "7"]
