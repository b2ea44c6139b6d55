"""A run that is asked to end saves what its steps have done; the next one loses none of them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from test_resume import OPTIONS, assert_same, outcome
from toy_engine import ToyPairTrainer, ToyTrainer, toy_cfg

from dassl.utils import Terminated, load_checkpoint
from tests.conftest import arguments

REPO = Path(__file__).parents[3]


pytestmark = pytest.mark.usefixtures("heeded_signals")


def sending(trainer_class: type, number: int, stop: tuple[int, int], method: str) -> type:
    """A trainer that gets a signal in a step (epoch, batch), or in a method of that epoch."""

    class Sending(trainer_class):
        sent = False

        def _send(self, *moment: int) -> None:
            if moment == stop and not Sending.sent:
                Sending.sent = True
                os.kill(os.getpid(), number)

        def forward_backward(self, *batch):
            if method == "forward_backward":
                self._send(self.epoch, self.batch_idx)
            return super().forward_backward(*batch)

        def model_inference(self, input):
            if method == "model_inference" and self._in_training:
                self._send(self.epoch, 0)
            return super().model_inference(input)

        def end_epoch(self):
            if method == "end_epoch":
                self._send(self.epoch, 0)
            super().end_epoch()

    return Sending


@pytest.mark.parametrize("trainer_class", [ToyTrainer, ToyPairTrainer])
@pytest.mark.parametrize(
    "method,stop",
    [
        ("forward_backward", (0, 0)),
        ("forward_backward", (1, 1)),
        ("forward_backward", (2, 3)),  # the last of all
        ("model_inference", (1, 0)),
        ("end_epoch", (1, 0)),
    ],
)
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_goes_on_within_the_epoch(toy_root, tmp_path, trainer_class, method, stop, number):
    trainer_class(toy_cfg(toy_root, tmp_path / "whole", *OPTIONS)).train()
    cfg = toy_cfg(toy_root, tmp_path / "parts", *OPTIONS)
    stopped = sending(trainer_class, number, stop, method)
    with pytest.raises(KeyboardInterrupt if number == signal.SIGINT else Terminated):
        stopped(cfg).train()
    assert not (tmp_path / "parts" / "result.json").exists()
    epoch, batch = stop
    state = load_checkpoint(tmp_path / "parts" / "resume.pth.tar")
    if method == "forward_backward":
        assert state["midway"]["batches"] == batch + 1  # the step under way is not lost
    torch.manual_seed(7)
    steps = []

    class Counting(trainer_class):
        def forward_backward(self, *batch):
            steps.append((self.epoch, self.batch_idx))
            return super().forward_backward(*batch)

    Counting(cfg).train()
    ahead = (epoch, batch + 1) if method == "forward_backward" else (epoch + 1, 0)
    assert all(step >= ahead for step in steps) and (steps or ahead > (2, 3))
    assert_same(outcome(tmp_path / "parts"), outcome(tmp_path / "whole"))
    assert not (tmp_path / "parts" / "resume.pth.tar").exists()


def test_a_second_interruption_does_not_wait(toy_root, tmp_path):
    class Twice(ToyTrainer):
        def forward_backward(self, batch):
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)
            raise AssertionError("it went on")

    with pytest.raises(KeyboardInterrupt):
        Twice(toy_cfg(toy_root, tmp_path)).train()
    assert not (tmp_path / "resume.pth.tar").exists()


@pytest.mark.parametrize(
    "number,status,word",
    [
        (signal.SIGINT, 130, "interrupted"),
        (signal.SIGTERM, 143, "terminated"),
    ],
)
def test_train_py_says_it_in_one_line(tmp_path, picture_root, backbone, number, status, word):
    """To the whole process group, as a terminal's Ctrl-C and Slurm do: workers get it too."""
    options = {"OPTIM__MAX_EPOCH": 10_000, "DATALOADER__NUM_WORKERS": 1, "TRAIN__PRINT_FREQ": 1}
    words = arguments("VPT", picture_root, backbone, tmp_path / "run", **options)
    process = subprocess.Popen(
        [sys.executable, "train.py", *words],
        cwd=REPO,
        text=True,
        start_new_session=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    for line in process.stdout:
        if line.startswith("epoch [2/"):
            break
    started = time.monotonic()
    os.killpg(process.pid, number)
    _, said = process.communicate()
    assert process.returncode == status, said
    assert said.splitlines() == [f"{word}; the same command goes on from here"]
    assert time.monotonic() - started < 60
    state = load_checkpoint(tmp_path / "run" / "resume.pth.tar")
    assert state["models"]["prompt_learner"]["epoch"] >= 1
    with pytest.raises(ProcessLookupError):
        os.killpg(process.pid, 0)  # no worker is left


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.usefixtures("heeded_signals")
def test_a_signal_in_a_destructor_is_not_lost(number):
    class Closing:
        def __del__(self):
            os.kill(os.getpid(), number)
            sum(range(1000))

    with pytest.raises((Terminated, KeyboardInterrupt)) as caught:
        Closing()
        for _ in range(500):
            time.sleep(0.02)
    assert caught.type is (KeyboardInterrupt if number == signal.SIGINT else Terminated)
