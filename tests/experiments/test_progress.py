"""What a protocol prints: what it will do, a line per chain, the end of it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from experiments.chains import Chain, Job
from experiments.processes import Watcher
from experiments.progress import PlanProgress, introduce, watched
from experiments.runner import Outcome
from experiments.watching.standing import DONE, FAILED, RUNNING, WAITING

TRAIN = "base2new/train_base/dtd/shots_16/CoOp/mini/seed{}"


def chain(folder: Path, seed: int) -> Chain:
    train = Job(folder / TRAIN.format(seed), ())
    test = Job(folder / TRAIN.format(seed).replace("train_base", "test_new"), (), train.folder)
    return Chain(f"CoOp dtd 16 shots seed {seed}", (train, test))


@pytest.fixture
def chains(tmp_path) -> list[Chain]:
    return [chain(tmp_path, seed) for seed in (1, 2, 3)]


class Recorded(Watcher):
    def __init__(self) -> None:
        self.told = []

    def begins(self, jobs) -> None:
        self.told += [("begins", len(jobs))]

    def ends(self, outcome) -> None:
        self.told += [("ends", outcome.state)]


def test_what_it_will_do_fits_eighty_columns(chains, tmp_path, capsys):
    folder = chains[0].jobs[0].folder
    folder.mkdir(parents=True)
    (folder / "result.json").write_text(json.dumps({"accuracy": 50.0}))
    introduce("base_to_new", chains, tmp_path)
    text = capsys.readouterr().out
    assert text.startswith("base_to_new: 6 runs, 3 that train and 3 that test a model\n")
    assert "1 of them have a result already" in text
    assert TRAIN.format(1) in text and f"scripts/status.py {tmp_path}" in text
    for line in text.splitlines():
        assert len(line) <= 80 or str(tmp_path) in line


def test_runs_are_followed_one_by_one(chains):
    recorded = Recorded()
    progress = PlanProgress(chains, 2, "plan", recorder=recorded)
    train, test = chains[0].jobs
    progress.begins([train])
    train.folder.mkdir(parents=True)
    (train.folder / "metrics.jsonl").write_text('{"epoch": 2, "loss": 0.5}\n')
    (train.folder / "config.yaml").write_text("OPTIM: {MAX_EPOCH: 4}\n")
    first, second = progress.standing().runs[:2]
    assert (first.state, *vars(first.epochs).values())[:4] == (RUNNING, 2, 4, 0.5)
    assert second.state == WAITING and second.tests
    progress.ends(Outcome(train, "done", 8.0, accuracy=60.0))
    progress.begins([test])
    progress.ends(Outcome(test, "failed", 1.0, "no luck"))
    standing = progress.standing()
    assert [run.state for run in standing.runs[:3]] == [DONE, FAILED, WAITING]
    assert standing.failed[0].reason == "no luck" and standing.runs[0].seconds == 8.0
    assert recorded.told == [("begins", 1), ("ends", "done"), ("begins", 1), ("ends", "failed")]


def test_a_line_for_each_chain_with_what_is_known_of_the_time_to_go(chains, capsys):
    progress = PlanProgress(chains, 1)
    train, test = chains[0].jobs
    progress.report(
        chains[0],
        [Outcome(train, "skipped", accuracy=60.0), Outcome(test, "skipped", accuracy=50.0)],
    )
    train, test = chains[1].jobs
    progress.report(
        chains[1],
        [Outcome(train, "done", 30.0, accuracy=60.0), Outcome(test, "done", 5.0, accuracy=50.0)],
    )
    train, test = chains[2].jobs
    progress.report(
        chains[2], [Outcome(train, "failed", 3.0, "no luck", status=1), Outcome(test, "left out")]
    )
    out = capsys.readouterr().out.splitlines()
    assert out == [
        "[1/3] CoOp dtd 16 shots seed 1: 60.00, 50.00 (was complete)",
        "[2/3] CoOp dtd 16 shots seed 2: 60.00, 50.00 (35 s); about 35 s to go",
        "[3/3] CoOp dtd 16 shots seed 3: FAILED, LEFT OUT (3 s)",
    ]
    assert progress.close() == 1
    said = capsys.readouterr()
    assert said.out.startswith("2 done, 2 skipped, 1 failed, 1 left out in ")
    assert said.err.splitlines()[0] == f"failed: {train.folder}: no luck"


def test_elsewhere_than_on_a_terminal_nothing_is_drawn(capsys):
    def look():
        raise AssertionError("looked at")

    with watched(look, wanted=True):
        print("a line")
    assert capsys.readouterr().out == "a line\n"
