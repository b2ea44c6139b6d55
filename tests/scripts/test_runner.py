"""scripts/runner.py with a stand-in for `python train.py`: what is run, skipped, repeated, left."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from dassl.utils import UserError
from scripts.protocols import Chain, Job
from scripts.runner import Runs, Settings, is_complete, local_slots, run_chain, run_local

ROOT = Path(__file__).resolve().parents[2]
# Called as `<this> train.py <folder> <what to do>`.
STAND_IN = """\
#!/bin/bash
echo started >> "$2/starts"
case "$3" in
    fail) echo "Traceback"; echo "RuntimeError: no luck"; exit 1 ;;
    mistake) echo "error: no such file"; exit 2 ;;
    once) [[ $(wc -l < "$2/starts") -gt 1 ]] || exit 1 ;;
    slow) sleep 1 ;;
    die) kill -9 $$ ;;
esac
echo '{"accuracy": 50.0, "config_hash": "ours"}' > "$2/result.json"
"""


@pytest.fixture
def settings(tmp_path) -> Settings:
    path = tmp_path / "stand-in"
    path.write_text(STAND_IN)
    path.chmod(0o755)
    return Settings(python=str(path))


def job(folder: Path, what: str = "work", model: Path | None = None) -> Job:
    return Job(folder, (str(folder), what), "ours", model)


def starts(folder: Path) -> int:
    path = folder / "starts"
    return len(path.read_text().splitlines()) if path.is_file() else 0


def run(settings: Settings, *jobs: Job):
    return run_chain(Chain("chain", jobs), settings, {}, Runs())


@pytest.mark.parametrize(
    ("what", "state", "tries", "reason"),
    [
        ("work", "done", 1, ""),
        ("once", "done", 2, ""),
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
    (folder / "result.json").write_text(json.dumps({"config_hash": "theirs", "accuracy": 1}))
    (outcome,) = run(settings, job(folder))
    assert outcome.state == "failed" and "another configuration" in outcome.reason
    assert "theirs" in (folder / "result.json").read_text() and starts(folder) == 0
    with pytest.raises(UserError):
        is_complete(job(folder))


def test_a_test_of_a_model_that_was_trained_anew_is_repeated(tmp_path, settings):
    train, test = tmp_path / "train", tmp_path / "test"
    jobs = job(train), job(test, model=train)
    run(settings, *jobs)
    assert [o.state for o in run(settings, *jobs)] == ["skipped", "skipped"]
    later = time.time() + 10
    os.utime(train / "result.json", (later, later))
    assert not is_complete(jobs[1])
    assert [o.state for o in run(settings, *jobs)] == ["skipped", "done"]


def test_without_its_model_a_test_is_left_out_but_not_its_siblings(tmp_path, settings):
    train = tmp_path / "train"
    tests = [job(tmp_path / name, what, train) for name, what in (("a", "fail"), ("b", "work"))]
    assert [o.state for o in run(settings, job(train), *tests)] == ["done", "failed", "done"]
    lost = tmp_path / "lost"
    outcomes = run(settings, job(lost, "fail"), job(tmp_path / "c", model=lost))
    assert [o.state for o in outcomes] == ["failed", "left out"]
    assert starts(tmp_path / "c") == 0


def test_chains_go_side_by_side_and_past_failures(tmp_path, settings):
    chains = [
        Chain(str(i), (job(tmp_path / str(i), what),))
        for i, what in enumerate(("slow", "fail", "slow", "slow"))
    ]
    seen = {}
    started = time.monotonic()
    run_local(
        chains, settings, [{}] * 4, lambda chain, outcomes: seen.update({chain.name: outcomes})
    )
    assert time.monotonic() - started < 2.5
    assert [seen[str(i)][0].state for i in range(4)] == ["done", "failed", "done", "done"]


RUNNER = """\
import sys
from pathlib import Path
from scripts.protocols import Chain, Job
from scripts.runner import Settings, run_local
python, *folders = sys.argv[1:]
chains = [Chain(f, (Job(Path(f), (f, "slow"), "ours"),)) for f in folders]
run_local(chains, Settings(python), [{}], lambda chain, o: print(o[0].state, flush=True))
"""


def start_runner(settings: Settings, *folders: Path) -> subprocess.Popen:
    command = [sys.executable, "-c", RUNNER, settings.python, *map(str, folders)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
    return subprocess.Popen(command, cwd=ROOT, text=True, **pipes)


def test_two_runners_at_once_do_each_run_once(tmp_path, settings):
    folders = [tmp_path / "a", tmp_path / "b"]
    runners = [start_runner(settings, *folders) for _ in range(2)]
    for runner in runners:
        assert runner.wait(timeout=30) == 0
    assert [starts(folder) for folder in folders] == [1, 1]


def test_a_killed_runners_run_is_waited_for_and_the_rest_taken_up(tmp_path, settings):
    folders = [tmp_path / "a", tmp_path / "b"]
    runner = start_runner(settings, *folders)
    while not starts(folders[0]):
        time.sleep(0.02)
    runner.send_signal(signal.SIGKILL)
    runner.wait()
    again = start_runner(settings, *folders)
    out, _ = again.communicate(timeout=30)
    assert again.returncode == 0
    assert all((folder / "result.json").is_file() for folder in folders)
    assert [starts(folder) for folder in folders] == [1, 1], out


def test_an_interruption_ends_the_runs_under_way(tmp_path, settings):
    folders = [tmp_path / "a", tmp_path / "b"]
    runner = start_runner(settings, *folders)
    while not starts(folders[0]):
        time.sleep(0.02)
    runner.send_signal(signal.SIGINT)
    runner.wait(timeout=30)
    time.sleep(1.2)  # longer than the run would have taken
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
