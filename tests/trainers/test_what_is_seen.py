"""Every method says what it sees, in the words of tuning/sees.py, and sees no more names."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import pytest

import train
from dassl.engine import TRAINER_REGISTRY
from tests.registered import every_trainer
from tuning.naming import is_wrapped, wrapped_name
from tuning.options import parse_args, setup_cfg
from tuning.sees import SEES, footnotes, known, marks
from tuning.trainer import PromptTrainer

METHODS = [
    name
    for name in every_trainer()
    if not is_wrapped(name) and issubclass(TRAINER_REGISTRY.get(name), PromptTrainer)
]


def test_words_letters_and_footnotes():
    letters = [sight.mark for sight in SEES.values()]
    assert len(set(letters)) == len(letters) and all(len(mark) == 1 for mark in letters)
    assert known(["teacher", "the_future", {}, "new_class_names"]) == ("new_class_names", "teacher")
    assert marks(["teacher", "new_class_names"]) == "N,T"
    assert footnotes(["teacher"]) == ["[T] sees a second trained model"]


@pytest.mark.parametrize("name", METHODS)
def test_every_method_says_what_it_sees(name):
    cfg = setup_cfg(parse_args(["--trainer", name]))
    method = TRAINER_REGISTRY.get(name).method_class
    said = method.what_it_sees(cfg)
    assert set(said) <= set(SEES) and set(method.sees) <= set(SEES)
    if method.teacher_key:
        assert "teacher" in said
    if wrapped_name(name) in TRAINER_REGISTRY:
        twin = TRAINER_REGISTRY.get(wrapped_name(name))
        assert twin.method_class.what_it_sees(cfg) == said


class Spied(Mapping):
    """Names by key that note when they are read."""

    def __init__(self, names):
        self.names, self.read = names, False

    def __getitem__(self, key):
        self.read = True
        return self.names[key]

    def __iter__(self):
        self.read = True
        return iter(self.names)

    def __len__(self):
        return len(self.names)


def reads_other_names(make_trainer, monkeypatch, name, **options):
    """Whether a method reads names of classes that it isn't trained on, until its first epoch."""
    spied = []

    def classes(self):
        found = real(self)
        spied.append(Spied(found.label_space))
        return replace(found, label_space=spied[0])

    real = PromptTrainer._classes
    monkeypatch.setattr(PromptTrainer, "_classes", classes)
    options = {"DATASET__SUBSAMPLE_CLASSES": "base", "OPTIM__MAX_EPOCH": 1, **options}
    trainer = make_trainer(name, TEST__NO_TEST=True, **options)
    trainer.train()
    return spied[0].read


@pytest.mark.parametrize("name", METHODS)
def test_no_method_reads_names_that_it_does_not_declare(make_trainer, monkeypatch, name):
    cfg = setup_cfg(parse_args(["--trainer", name]))
    method = TRAINER_REGISTRY.get(name).method_class
    if "new_class_names" not in method.what_it_sees(cfg) and not method.teacher_key:
        assert not reads_other_names(make_trainer, monkeypatch, name)


@pytest.mark.parametrize(
    ("options", "read"),
    [
        ({"NAMES": "all"}, True),
        ({"NEGATIVES": "all"}, True),
        ({"NAMES": "all", "ENABLE": False}, False),
        ({"NAMES": "all", "LASP_LOSS_WEIGHT": 0.0}, False),
    ],
)
def test_lasps_options(run_lasp, make_trainer, monkeypatch, tmp_path, options, read):
    options = {f"TRAINER__LASP__{key}": value for key, value in options.items()}
    saw = ["new_class_names"] if read else []
    base = tmp_path / "base"
    assert run_lasp(base, DATASET__SUBSAMPLE_CLASSES="base", **options) == saw
    # A test sees what the model saw, and so does what starts from it.
    tested = ("--eval-only", "--model-dir", str(base))
    assert run_lasp(tmp_path / "new", *tested, DATASET__SUBSAMPLE_CLASSES="new") == saw
    start = {"MODEL__INIT_WEIGHTS": base / "prompt_learner" / "model.pth.tar-1"}
    assert run_lasp(tmp_path / "on", DATASET__SUBSAMPLE_CLASSES="base", **start) == saw
    # Where there are no other classes there is nothing more to see.
    assert run_lasp(tmp_path / "all", **options) == []


@pytest.fixture
def run_lasp(command):
    def run(output, *words, **options):
        own = {"TRAINER__LASP__LASP_PROMPTS": ["a {}."], "OPTIM__MAX_EPOCH": 1}
        train.main(command("LASP", *words, output=output, **{**own, **options}))
        return json.loads((output / "result.json").read_text())["sees"]

    return run


def test_settings_per_data_set_are_recorded(make_trainer):
    assert make_trainer("CoOp").seen() == []
    trainer = make_trainer("CoOp", TRAINER__SETTINGS_PER_DATA_SET=True, OPTIM__MAX_EPOCH=1)
    assert trainer.seen() == ["settings_per_data_set"]


def test_validation_images_that_are_the_test_images(make_trainer):
    options = {"TRAINER__TIP_ADAPTER__CHOICE": "val"}
    trainer = make_trainer("TipAdapter", **options)
    assert trainer.seen() == ["validation_images"]
    trainer.dm.dataset._val = trainer.dm.dataset.test
    assert trainer.seen() == ["test_images"]
    trainer = make_trainer("CoOp", TEST__FINAL_MODEL="best_val")
    assert trainer.seen() == ["validation_images"]
    trainer.dm.dataset._val = trainer.dm.dataset.test
    assert trainer.seen() == ["test_images"]


@pytest.mark.parametrize(("name", "chosen"), [("TipAdapter", True), ("CoOp", False)])
def test_what_is_chosen_and_both_halves_are_recorded(command, tmp_path, name, chosen):
    def result(folder, *words, **options):
        train.main(command(name, *words, output=tmp_path / folder, **options))
        return json.loads((tmp_path / folder / "result.json").read_text())

    base = result("base", DATASET__SUBSAMPLE_CLASSES="base")
    assert set(base["chosen"]) == ({"alpha", "beta", "by"} if chosen else set())
    assert base["halves"] is None and base["model_classes"] == "base"
    tested = ("--eval-only", "--model-dir", str(tmp_path / "base"))
    both = result("all", *tested, DATASET__SUBSAMPLE_CLASSES="all", TEST__SAVE_PREDICTIONS=True)
    assert both["model_classes"] == "base" and both["classes"] == "all"
    assert both["chosen"] == base["chosen"]
    predicted = np.load(tmp_path / "all" / "predictions.npz")
    right = predicted["logits"].argmax(axis=1) == predicted["labels"]
    old = predicted["labels"] < (len(predicted["classnames"]) + 1) // 2
    for part, rows in (("base", old), ("new", ~old)):
        assert both["halves"][part] == pytest.approx(100 * right[rows].mean())
    if chosen:
        one = result("one", DATASET__NUM_SHOTS=1)
        fixed = result("fixed", TRAINER__TIP_ADAPTER__CHOICE="fixed")
        assert one["chosen"] == fixed["chosen"] == {}
