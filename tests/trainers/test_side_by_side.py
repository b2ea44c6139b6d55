"""Several seeds in one process give what each gives alone."""

import json

import pytest
import torch

import train
import trainers
from dassl.engine import TRAINER_REGISTRY
from dassl.utils import UserError

trainers.modules()
TRAINED = sorted(n for n in TRAINER_REGISTRY.registered_names() if "Zeroshot" not in n)
OPTIONS = {"DATASET__SUBSAMPLE_CLASSES": "base", "OPTIM__MAX_EPOCH": 3}


def with_seeds(words: list[str], *seeds: int) -> list[str]:
    """A command line with other seeds."""
    at = words.index("--seed")
    return [*words[: at + 1], *map(str, seeds), *words[at + 2 :]]


def lines(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def state(folder):
    (file,) = folder.glob("*/model.pth.tar-3")
    return torch.load(file, weights_only=True)


@pytest.mark.parametrize("name", TRAINED)
def test_together_equals_apart(command, tmp_path, name):
    words = command(name, output=tmp_path / "together", **OPTIONS)
    train.main(with_seeds(words, 1, 2))
    for seed in (1, 2):
        alone = tmp_path / f"alone{seed}"
        train.main(with_seeds(command(name, output=alone, **OPTIONS), seed))
        folder = tmp_path / "together" / f"seed{seed}"
        for a, b in zip(lines(alone), lines(folder), strict=True):
            assert a["loss"] == pytest.approx(b["loss"], rel=1e-5)
            assert a["losses"] == pytest.approx(b["losses"], rel=1e-4, abs=1e-6)
            assert a["lr"] == b["lr"]
        one, other = state(alone), state(folder)
        for key, value in one["state_dict"].items():
            torch.testing.assert_close(other["state_dict"][key], value, rtol=1e-4, atol=1e-5)
        results = [json.loads((f / "result.json").read_text()) for f in (alone, folder)]
        for key in ("accuracy", "seed", "fewshot_hash", "config_hash"):
            assert results[0][key] == results[1][key]
        log = (folder / "log.txt").read_text()
        assert log.count("* accuracy:") == 1 and f"fixed seed: {seed}" in log


def test_goes_on_where_it_was_killed(command, tmp_path, monkeypatch):
    from trainers.side_by_side import Stack

    def run(folder):
        train.main(with_seeds(command("DePT_MaPLe", output=tmp_path / folder, **OPTIONS), 1, 2))

    run("whole")
    step, calls = Stack.step, []

    def dies(self, batches):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return step(self, batches)

    monkeypatch.setattr(Stack, "step", dies)
    with pytest.raises(KeyboardInterrupt):
        run("killed")
    monkeypatch.setattr(Stack, "step", step)
    run("killed")
    for seed in ("seed1", "seed2"):
        assert [a["loss"] for a in lines(tmp_path / "whole" / seed)] == [
            b["loss"] for b in lines(tmp_path / "killed" / seed)
        ]


def test_evaluates_each_seeds_own_model(command, tmp_path):
    words = command("CoOp", output=tmp_path / "base", **OPTIONS)
    train.main(with_seeds(words, 1, 2))
    there = ("--eval-only", "--model-dir", str(tmp_path / "base"))
    words = command("CoOp", *there, output=tmp_path / "again", **OPTIONS)
    train.main(with_seeds(words, 1, 2))
    for seed in ("seed1", "seed2"):
        results = [
            json.loads((tmp_path / part / seed / "result.json").read_text())
            for part in ("base", "again")
        ]
        assert results[0]["accuracy"] == results[1]["accuracy"]


@pytest.mark.parametrize(
    "words,seeds",
    [
        (["--seed", "1", "OPTIM.LR", "0.1"], [1]),
        (["--seed", "1", "2", "3", "OPTIM.LR", "0.1"], [1, 2, 3]),
        (["--seed", "-1"], [-1]),
        (["--seed=4"], [4]),
        (["--seed", "1", "2", "--trainer", "CoOp"], [1, 2]),
    ],
)
def test_seeds_end_where_the_numbers_do(words, seeds):
    args = train.parse_args(words)
    assert args.seed == seeds
    assert args.opts == (["OPTIM.LR", "0.1"] if "OPTIM.LR" in words else [])


@pytest.mark.parametrize("words", [["1", "1"], ["1", "-1"], ["x"], []])
def test_wrong_seeds(words):
    with pytest.raises(UserError, match="seed"):
        train.parse_args(["--seed", *words])
