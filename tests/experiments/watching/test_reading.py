"""A plan's records, and what is read of them, and of the runs' folders, from elsewhere."""

from __future__ import annotations

import fcntl
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from dassl.utils import UserError
from experiments.chains import Chain, Job
from experiments.runner import Outcome
from experiments.watching import reading, records
from experiments.watching.reading import standing_of, standings
from experiments.watching.records import Recorder, read_plan, write_plan
from experiments.watching.standing import DONE, FAILED, LEFT, RUNNING, STOPPED, WAITING

PLACE = "base2new/{}/dtd/shots_16/CoOp/mini/seed{}"


@pytest.fixture
def plan(tmp_path) -> Path:
    return write_plan(tmp_path, "base_to_new", ["base_to_new", "--root", "a b"], [chain(tmp_path)])


def chain(output: Path) -> Chain:
    train = [Job(output / PLACE.format("train_base", seed), ()) for seed in (1, 2)]
    tests = [
        Job(output / PLACE.format("test_new", seed), (), train[seed - 1].folder) for seed in (1, 2)
    ]
    return Chain("CoOp dtd", (*train, *tests))


def folders(plan: Path) -> list[Path]:
    return [job.folder for job in chain(plan.parents[1]).jobs]


def states(plan: Path) -> list[str]:
    return [run.state for run in standing_of(plan).runs]


def write_result(folder: Path, accuracy: object = 80.0) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "result.json").write_text(json.dumps({"accuracy": accuracy}))


def write_epochs(folder: Path, epochs: int, of: int = 10) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    lines = [
        json.dumps({"epoch": epoch + 1, "loss": 0.5, "seconds": 2.0}) for epoch in range(epochs)
    ]
    (folder / "metrics.jsonl").write_text("".join(f"{line}\n" for line in lines))
    (folder / "config.yaml").write_text(f"OPTIM:\n  MAX_EPOCH: {of}\n")


def test_a_plan_says_what_there_is_to_be(plan, tmp_path):
    standing = standing_of(plan)
    assert standing.command == "python scripts/run_protocol.py base_to_new --root 'a b'"
    assert [run.name for run in standing.runs] == [
        PLACE.format(stage, seed) for stage in ("train_base", "test_new") for seed in (1, 2)
    ]
    assert [run.tests for run in standing.runs] == [False, False, True, True]
    assert states(plan) == [WAITING] * 4 and not standing.goes_on


def test_the_same_runs_have_the_same_plan_and_others_another(plan, tmp_path):
    again = write_plan(tmp_path, "base_to_new", ["again"], [chain(tmp_path)])
    assert again == plan and standing_of(plan).command.endswith("again")
    other = Chain("one", chain(tmp_path).jobs[:1])
    assert write_plan(tmp_path, "base_to_new", [], [other]) != plan
    assert len(standings(tmp_path)) == 2


def test_the_folder_may_lie_elsewhere(plan, tmp_path):
    write_result(folders(plan)[0])
    moved = tmp_path.parent / f"{tmp_path.name}-moved"
    tmp_path.rename(moved)
    (standing,) = standings(moved)
    moved.rename(tmp_path)
    assert [run.state for run in standing.runs] == [DONE, WAITING, WAITING, WAITING]


def test_a_process_says_what_becomes_of_its_runs(plan):
    jobs = chain(plan.parents[1]).jobs
    recorder = Recorder(plan, 3)
    recorder.begins(jobs[:2])
    for folder in folders(plan)[:2]:
        write_epochs(folder, 4)
    standing = standing_of(plan)
    assert [run.state for run in standing.runs] == [RUNNING, RUNNING, WAITING, WAITING]
    assert standing.goes_on and standing.width == 3
    first = standing.runs[0]
    assert (first.epochs.done, first.epochs.of, first.together) == (4, 10, 2)
    assert (first.epochs.loss, first.epochs.each) == (0.5, 2.0)
    assert first.since <= time.time()
    for job in jobs[:2]:
        write_result(job.folder)
        recorder.ends(Outcome(job, "done", 12.0, accuracy=80.0))
    recorder.begins(jobs[2:3])
    recorder.ends(Outcome(jobs[2], "failed", 1.0, "no luck"))
    recorder.ends(Outcome(jobs[3], "left out", reason="the model it tests was not trained"))
    recorder.close()
    standing = standing_of(plan)
    assert [run.state for run in standing.runs] == [DONE, DONE, FAILED, LEFT]
    assert [run.seconds for run in standing.runs[:2]] == [12.0, 12.0]
    assert standing.failed[0].reason == "no luck" and not standing.goes_on


def test_what_failed_is_to_come_while_another_process_will_try_it(plan):
    job = chain(plan.parents[1]).jobs[0]
    first = Recorder(plan)
    first.ends(Outcome(job, "failed", reason="no luck"))
    first.close()
    assert states(plan)[0] == FAILED
    second = Recorder(plan)
    assert states(plan)[0] == WAITING
    second.close()
    assert states(plan)[0] == FAILED
    write_result(job.folder)
    assert states(plan)[0] == DONE


def test_a_result_that_the_plan_refused_is_a_failure(plan):
    job = chain(plan.parents[1]).jobs[0]
    write_result(job.folder)
    os.utime(job.folder / "result.json", (1.0, 1.0))
    recorder = Recorder(plan)
    recorder.ends(Outcome(job, "failed", reason="it holds another run's result"))
    recorder.close()
    assert states(plan)[0] == FAILED


def test_after_a_kill_runs_are_stopped_but_those_that_still_go(plan, monkeypatch):
    recorder = Recorder(plan)
    recorder.begins(chain(plan.parents[1]).jobs[:2])
    for folder in folders(plan)[:2]:
        write_epochs(folder, 3)
        os.utime(folder / "metrics.jsonl", (1.0, 1.0))
    recorder.close()  # of a killed process the file would be the same, but for its end
    assert states(plan) == [STOPPED, STOPPED, WAITING, WAITING]
    with open(folders(plan)[0] / ".runner.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert states(plan) == [RUNNING, STOPPED, WAITING, WAITING]
    (folders(plan)[1] / "console.txt").write_text("epoch 3\nerror: no room\n")
    assert standing_of(plan).runs[1].reason == "no room"


def test_a_dead_process_is_known_by_its_number_here_and_by_its_silence_elsewhere(plan):
    code = (
        "import sys, os, pathlib\n"
        "from experiments.watching.records import Recorder\n"
        "Recorder(pathlib.Path(sys.argv[1])); os._exit(9)"
    )
    subprocess.run([sys.executable, "-c", code, str(plan)], check=False)
    assert [process.alive for process in standing_of(plan).processes] == [False]
    (path,) = (path for path in plan.glob("*.json") if path.name != "plan.json")
    content = json.loads(path.read_text())
    for beat, alive in ((time.time(), True), (time.time() - reading.SILENT - 1, False)):
        path.write_text(json.dumps({**content, "host": "elsewhere", "beat": beat}))
        assert [process.alive for process in standing_of(plan).processes] == [alive]


def test_a_process_beats(plan, monkeypatch):
    monkeypatch.setattr(records, "BEAT", 0.01)
    recorder = Recorder(plan)
    path = next(path for path in plan.glob("*.json") if path.name != "plan.json")
    before = json.loads(path.read_text())["beat"]
    for _ in range(500):
        if json.loads(path.read_text())["beat"] > before:
            break
        time.sleep(0.01)
    recorder.close()
    assert json.loads(path.read_text())["beat"] > before


def test_that_it_cannot_be_written_is_said_once_and_stops_nothing(plan, full_disk, capsys):
    recorder = Recorder(plan)
    with full_disk(0):
        recorder.begins(chain(plan.parents[1]).jobs[:1])
        recorder.begins(chain(plan.parents[1]).jobs[1:2])
    recorder.close()
    assert capsys.readouterr().out.count("nobody can watch this from elsewhere: cannot write") == 1


@pytest.mark.parametrize(
    "text", ["", "[]", '{"chains": 3}', '{"protocol": 1, "command": 2, "chains": [{}]}', "\x00"]
)
def test_what_is_no_plan_and_no_record_is_passed_over(plan, tmp_path, text):
    (plan / "vm-1.json").write_text(text)
    (plan / "vm-2.json").write_text('{"host": "a", "process": "b", "width": 1}')
    assert read_plan(plan)[1] == []
    (tmp_path / "plans" / "other").mkdir()
    (tmp_path / "plans" / "other" / "plan.json").write_text(text)
    assert len(standings(tmp_path)) == 1


def test_a_half_written_line_is_no_epoch(plan):
    folder = folders(plan)[0]
    write_epochs(folder, 3)
    with open(folder / "metrics.jsonl", "a") as file:
        file.write('{"epoch": 4, "lo')
    (run, *_) = standing_of(plan).runs
    assert run.state == RUNNING and run.epochs.done == 3


def test_runs_without_a_plan_are_shown_too(tmp_path):
    folder = tmp_path / PLACE.format("train_base", 1)
    write_epochs(folder, 10)
    write_result(folder)
    (standing,) = standings(tmp_path)
    assert standing.title == "runs" and [run.state for run in standing.runs] == [DONE]


def test_where_nothing_of_ours_is_that_is_said(tmp_path):
    with pytest.raises(UserError, match="holds no plan"):
        standings(tmp_path)
    with pytest.raises(UserError, match="no such folder"):
        standings(tmp_path / "absent")
