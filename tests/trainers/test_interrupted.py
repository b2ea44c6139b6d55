"""Every method, alone or with several seeds, goes on within an epoch as if never interrupted."""

import json
import os
import signal

import pytest
import torch

import train
from dassl.engine.records import Records
from dassl.utils import Terminated, read_json, unlock_folder
from tests.registered import every_trainer, some_twins, trains
from tuning import trainer as base
from tuning.multi_seed import Stack

TRAINED = some_twins(n for n in every_trainer() if trains(n))
OPTIONS = {"DATASET__SUBSAMPLE_CLASSES": "base", "OPTIM__MAX_EPOCH": 3, "DATASET__NUM_SHOTS": 4}
STEPS = 3  # of an epoch: 3 base classes, 4 shots, batches of 4


pytestmark = pytest.mark.usefixtures("heeded_signals")


@pytest.fixture
def terminated_in(monkeypatch):
    """terminated_in(owner, name, n, run): `run`, sent SIGTERM in the n-th call (from 0)."""

    def terminate(owner, name, n, run):
        method, calls = getattr(owner, name), []

        def sends(*args):
            if len(calls) == n:
                os.kill(os.getpid(), signal.SIGTERM)
            calls.append(1)
            return method(*args)

        with monkeypatch.context() as patch, pytest.raises(Terminated):
            patch.setattr(owner, name, sends)
            run()
        return len(calls)

    return terminate


def outcome(folder):
    epochs = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    for epoch in epochs:
        del epoch["seconds"]
    (file,) = folder.glob("*/model.pth.tar-3")
    checkpoint = torch.load(file, weights_only=True)
    accuracy = read_json(folder / "result.json")["accuracy"]
    return epochs, accuracy, checkpoint["state_dict"], checkpoint["optimizer"]["state"]


def assert_same(one, two):
    (epochs, accuracy, state, optimizer), others = one, two
    assert (epochs, accuracy) == others[:2]
    for name, value in state.items():
        assert torch.equal(value, others[2][name]), name
    for number, slots in optimizer.items():
        for name, value in slots.items():
            assert not torch.is_tensor(value) or torch.equal(value, others[3][number][name])


@pytest.mark.parametrize("name", TRAINED)
def test_alone(command, tmp_path, terminated_in, name):
    train.main(command(name, output=tmp_path / "whole", **OPTIONS))
    words = command(name, output=tmp_path / "parts", **OPTIONS)
    step = base.PromptTrainer, "end_step"
    assert terminated_in(*step, STEPS + 1, lambda: train.main(words)) == STEPS + 2
    assert terminated_in(*step, 0, lambda: train.main(words)) == 1  # the last step of an epoch
    train.main(words)
    assert_same(outcome(tmp_path / "parts"), outcome(tmp_path / "whole"))


@pytest.mark.parametrize("name", ["DePT_CoOp", "PromptSRC"])
@pytest.mark.parametrize(
    "n,extra", [(STEPS + 1, {}), (2 * STEPS - 1, {"TEST__FINAL_MODEL": "best_val"})]
)
def test_several_seeds(command, tmp_path, terminated_in, name, n, extra):
    def words(part):
        at = command(name, output=tmp_path / part, **OPTIONS, **extra)
        return [*at, "--seed", "1", "2"]

    train.main(words("whole"))
    taken = terminated_in(Stack, "step", n, lambda: train.main(words("parts")))
    assert taken == n + 1
    train.main(words("parts"))
    for seed in ("seed1", "seed2"):
        assert_same(outcome(tmp_path / "parts" / seed), outcome(tmp_path / "whole" / seed))


@pytest.mark.parametrize("written", [1, 3, 5])
def test_killed_between_two_seeds_records(command, tmp_path, monkeypatch, written):
    """One seed's record of an epoch is there, the other's isn't: they go on in step again."""

    class Killed(BaseException):
        pass

    def words(part):
        return [*command("DePT_CoOp", output=tmp_path / part, **OPTIONS), "--seed", "1", "2"]

    train.main(words("whole"))
    write, calls = Records.write_resume, []

    def dies(self, state):
        calls.append(1)
        if len(calls) > written:
            raise Killed
        write(self, state)

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(Records, "write_resume", dies)
        train.main(words("parts"))
    unlock_folder(tmp_path / "parts" / "seed1")
    unlock_folder(tmp_path / "parts" / "seed2")
    train.main(words("parts"))
    for seed in ("seed1", "seed2"):
        assert_same(outcome(tmp_path / "parts" / seed), outcome(tmp_path / "whole" / seed))
        assert not list((tmp_path / "parts" / seed).glob("resume*"))
