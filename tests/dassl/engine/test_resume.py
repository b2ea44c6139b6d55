"""A run that is interrupted, at whatever moment, ends as if it had not been."""

from __future__ import annotations

import json
import multiprocessing
import os
import time
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from toy_engine import ToyTrainer, toy_cfg

from dassl.engine import start_log
from dassl.utils import UserError, load_checkpoint, read_json


class Stop(Exception):
    pass


class StoppingTrainer(ToyTrainer):
    """Stops once, at a batch of an epoch, or between the end of training and the evaluation."""

    stop: tuple[int, int] | None = None

    def forward_backward(self, batch):
        self._stop_at(self.epoch, self.batch_idx)
        return super().forward_backward(batch)

    def after_train(self):
        self._stop_at(self.max_epoch, 0)
        super().after_train()

    def _stop_at(self, *moment: int) -> None:
        if moment == StoppingTrainer.stop:
            StoppingTrainer.stop = None
            raise Stop


def outcome(folder: str | Path) -> dict:
    """Everything of a run that must not depend on interruptions."""
    folder = Path(folder)
    metrics = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    for line in metrics:
        line.pop("seconds")
    result = read_json(folder / "result.json")
    for name in ("seconds", "peak_memory_mb", "decoding"):
        result.pop(name)
    checkpoints = {p.name: load_checkpoint(p) for p in folder.glob("model/model*")}
    return {"metrics": metrics, "result": result, "checkpoints": checkpoints}


def assert_same(one: object, two: object) -> None:
    """Equal to the last bit."""
    assert type(one) is type(two)
    if isinstance(one, dict):
        assert list(one) == list(two)
        for key in one:
            assert_same(one[key], two[key])
    elif isinstance(one, (list, tuple)):
        assert len(one) == len(two)
        for a, b in zip(one, two, strict=True):
            assert_same(a, b)
    elif isinstance(one, torch.Tensor):
        assert one.dtype == two.dtype and torch.equal(one, two)
    else:
        assert one == two


OPTIONS = ("TEST.FINAL_MODEL", "best_val")


@pytest.fixture(scope="module")
def uninterrupted(toy_root, tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    StoppingTrainer(toy_cfg(toy_root, folder, *OPTIONS)).train()
    return outcome(folder)


@settings(max_examples=8)
@given(
    stops=st.lists(st.tuples(st.integers(0, 2), st.integers(0, 3)), max_size=3),
    at_the_end=st.booleans(),
)
def test_interrupted_runs_end_as_uninterrupted_ones(
    stops, at_the_end, toy_root, tmp_path_factory, uninterrupted
):
    folder = tmp_path_factory.mktemp("parts")
    for stop in [*sorted(stops), *([(3, 0)] if at_the_end else [])]:
        StoppingTrainer.stop = stop
        torch.manual_seed(len(stops))  # what a new process happens to start from
        with pytest.raises(Stop):
            StoppingTrainer(toy_cfg(toy_root, folder, *OPTIONS)).train()
        assert not (folder / "result.json").exists()
    StoppingTrainer(toy_cfg(toy_root, folder, *OPTIONS)).train()
    assert_same(outcome(folder), uninterrupted)
    assert not (folder / "resume.pth.tar").exists()


@pytest.mark.parametrize("workers", [2])
def test_resumed_with_other_workers(toy_root, tmp_path, uninterrupted, workers):
    StoppingTrainer.stop = (1, 2)
    with pytest.raises(Stop):
        StoppingTrainer(toy_cfg(toy_root, tmp_path, *OPTIONS)).train()
    machine = ("DATALOADER.NUM_WORKERS", workers, "TRAIN.PRINT_FREQ", 1)
    StoppingTrainer(toy_cfg(toy_root, tmp_path, *OPTIONS, *machine)).train()
    assert_same(outcome(tmp_path), uninterrupted)


def _train(root: Path, folder: Path) -> None:
    torch.set_num_threads(1)
    cfg = toy_cfg(root, folder, *OPTIONS)
    start_log(cfg)
    StoppingTrainer(cfg).train()


def assert_only_whole_files(folder: Path) -> None:
    for path in folder.rglob("*"):
        if path.name.startswith(".") or not path.is_file():
            continue
        if path.suffix == ".json":
            read_json(path)
        elif path.suffix == ".jsonl":
            assert [json.loads(line) for line in path.read_text().splitlines()]
        elif ".pth.tar" in path.name:
            load_checkpoint(path)
        elif path.name == "checkpoint":
            assert (path.parent / path.read_text().strip()).is_file()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_killed_runs_leave_whole_files_and_go_on(toy_root, tmp_path, uninterrupted):
    folder = tmp_path / "run"
    context = multiprocessing.get_context("fork")
    moment = 0.03
    for _ in range(40):
        process = context.Process(target=_train, args=(toy_root, folder))
        process.start()
        process.join(moment)
        if process.exitcode is not None:
            break
        process.kill()
        process.join()
        assert_only_whole_files(folder)
        moment *= 1.25  # however slow the machine, one of them gets through
    assert process.exitcode == 0
    assert_same(outcome(folder), uninterrupted)
    assert not [path for path in folder.rglob("*") if ".partial-" in path.name]
    log = (folder / "log.txt").read_text()
    assert log.count("* accuracy: ") >= 1


def interrupt(cfg, at=(2, 0)) -> None:
    StoppingTrainer.stop = at
    with pytest.raises(Stop):
        StoppingTrainer(cfg).train()


def test_another_config_is_refused_until_it_may_overwrite(toy_root, tmp_path):
    interrupt(toy_cfg(toy_root, tmp_path / "a", *OPTIONS))
    other = (*OPTIONS, "OPTIM.LR", 0.01)
    with pytest.raises(UserError, match=r"OPTIM.LR 0.005 -> 0.01.*--overwrite"):
        StoppingTrainer(toy_cfg(toy_root, tmp_path / "a", *other)).train()
    cfg = toy_cfg(toy_root, tmp_path / "a", *other, "OVERWRITE", True)
    start_log(cfg)
    StoppingTrainer(cfg).train()
    StoppingTrainer(toy_cfg(toy_root, tmp_path / "b", *other)).train()
    assert_same(outcome(tmp_path / "a"), outcome(tmp_path / "b"))
    log = (tmp_path / "a" / "log.txt").read_text()
    assert "train from scratch" in log and "resuming" not in log


def test_log_goes_on(toy_root, tmp_path):
    cfg = toy_cfg(toy_root, tmp_path, *OPTIONS)
    start_log(cfg)
    interrupt(cfg)
    start_log(cfg)
    StoppingTrainer(cfg).train()
    log = (tmp_path / "log.txt").read_text()
    assert "resuming at epoch 3" in log
    assert log.count("epoch [1/3] batch [4/4]") == log.count("epoch [3/3] batch [4/4]") == 1


def test_resume_from_another_folder(toy_root, tmp_path, uninterrupted):
    interrupt(toy_cfg(toy_root, tmp_path / "a", *OPTIONS))
    demand = ("RESUME", str(tmp_path / "a"))
    StoppingTrainer(toy_cfg(toy_root, tmp_path / "b", *OPTIONS, *demand)).train()
    assert_same(outcome(tmp_path / "b")["metrics"], uninterrupted["metrics"])
    assert_same(outcome(tmp_path / "b")["result"], uninterrupted["result"])


def test_a_finished_run_can_be_extended(toy_root, tmp_path, capsys):
    plain = ("OPTIM.LR_SCHEDULER", "single_step")
    StoppingTrainer(toy_cfg(toy_root, tmp_path / "a", *plain, "OPTIM.MAX_EPOCH", 2)).train()
    longer = (*plain, "OPTIM.STEPSIZE", (9,), "OPTIM.MAX_EPOCH", 4)
    more = ("RESUME", str(tmp_path / "a"))
    StoppingTrainer(toy_cfg(toy_root, tmp_path / "b", *longer, *more)).train()
    assert "resuming at epoch 3" in capsys.readouterr().out
    StoppingTrainer(toy_cfg(toy_root, tmp_path / "c", *longer)).train()
    assert_same(outcome(tmp_path / "b")["metrics"], outcome(tmp_path / "c")["metrics"])


def test_demanded_resume_with_another_config_says_so(toy_root, tmp_path, capsys):
    interrupt(toy_cfg(toy_root, tmp_path, *OPTIONS))
    cfg = toy_cfg(toy_root, tmp_path, *OPTIONS, "RESUME", str(tmp_path), "OPTIM.MAX_EPOCH", 4)
    StoppingTrainer(cfg).train()
    assert "OPTIM.MAX_EPOCH 3 -> 4" in capsys.readouterr().out
    assert [line["epoch"] for line in outcome(tmp_path)["metrics"]] == [1, 2, 3, 4]


def test_demanded_resume_of_nothing(toy_root, tmp_path):
    cfg = toy_cfg(toy_root, tmp_path / "a", *OPTIONS, "RESUME", str(tmp_path / "none"))
    with pytest.raises(UserError, match="none holds no run to resume"):
        StoppingTrainer(cfg).train()


def _wait_in_training(root: Path, folder: Path) -> None:
    ToyTrainer.forward_backward = lambda self, batch: time.sleep(30)
    StoppingTrainer(toy_cfg(root, folder)).train()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_second_run_in_the_folder_is_refused(toy_root, tmp_path):
    process = multiprocessing.get_context("fork").Process(
        target=_wait_in_training, args=(toy_root, tmp_path / "run")
    )
    process.start()
    try:
        while not (tmp_path / "run" / "config.yaml").exists():
            assert process.is_alive()
            time.sleep(0.02)
        with pytest.raises(UserError, match="in use by another run"):
            start_log(toy_cfg(toy_root, tmp_path / "run"))
        with pytest.raises(UserError, match="in use by another run"):
            StoppingTrainer(toy_cfg(toy_root, tmp_path / "run")).train()
    finally:
        process.kill()
        process.join()
