"""Our logs, read by the rules of the public parsers: parse_test_res.py, DePT's result_parser.py.

Theirs: a line that is exactly the signal; after it, the last `* accuracy: …%` counts. DePT's looks
for the last `accuracy: …%` with a decimal point anywhere.
"""

import json
import re

import pytest

import train

TRAINED, TESTED = "Finish training", "=> result"


def found(log, signal):
    """The accuracy that is read from a log after the line `signal`; None if there is none."""
    lines = [line.strip() for line in log.read_text(encoding="utf-8").splitlines()]
    after = lines[lines.index(signal) :] if signal in lines else []
    numbers = re.findall(r"\* accuracy: ([-+.\deE]+)%", "\n".join(after))
    return float(numbers[-1]) if numbers else None


def found_anywhere(log):
    return float(re.findall(r"accuracy: (\d+\.\d*)%", log.read_text(encoding="utf-8"))[-1])


def accuracy(folder):
    return pytest.approx(json.loads((folder / "result.json").read_text())["accuracy"], abs=0.0501)


@pytest.mark.parametrize("trainer", ["CoOp", "DePT_CoOp"])
def test_a_training_and_a_test(command, tmp_path, trainer):
    more = {"TEST__PER_CLASS_RESULT": True, "DATASET__SUBSAMPLE_CLASSES": "base"}
    train.main(command(trainer, output=tmp_path / "base", **more))
    log = tmp_path / "base" / "log.txt"
    assert found(log, TRAINED) == found(log, TESTED) == found_anywhere(log)
    assert found(log, TRAINED) == accuracy(tmp_path / "base")

    more["DATASET__SUBSAMPLE_CLASSES"] = "new"
    last = ("--eval-only", "--model-dir", str(tmp_path / "base"), "--load-epoch", "2")
    train.main(command(trainer, *last, output=tmp_path / "new", **more))
    log = tmp_path / "new" / "log.txt"
    assert found(log, TESTED) == found_anywhere(log) == accuracy(tmp_path / "new")
    assert found(log, TRAINED) is None


def test_best_on_validation_images(command, tmp_path):
    """The accuracies on validation images come before the signal, the one that counts after."""
    train.main(command("CoOp", output=tmp_path, TEST__FINAL_MODEL="best_val"))
    log = tmp_path / "log.txt"
    assert len(re.findall(r"\* accuracy: ", log.read_text())) == 3
    assert found(log, TRAINED) == found_anywhere(log) == accuracy(tmp_path)


def test_seeds_side_by_side(command, tmp_path):
    words = command("CoOp", output=tmp_path)
    at = words.index("--seed")
    train.main([*words[: at + 2], "2", *words[at + 2 :]])
    for seed in ("seed1", "seed2"):
        log = tmp_path / seed / "log.txt"
        assert found(log, TRAINED) == found_anywhere(log) == accuracy(tmp_path / seed)


def test_zero_shot(command, tmp_path):
    """Nothing is trained: only the parser's rule for tests finds the result."""
    train.main(command("ZeroshotCLIP", output=tmp_path))
    assert found(tmp_path / "log.txt", TESTED) == accuracy(tmp_path)
