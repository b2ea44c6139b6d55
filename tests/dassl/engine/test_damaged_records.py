"""A run whose files are cut, or hold something else: one line that names the file."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from toy_engine import ToyTrainer, toy_cfg

from dassl.utils import UserError, load_checkpoint, save_plain


class Interrupted(ToyTrainer):
    def before_epoch(self) -> None:
        if self.epoch == 1:
            raise KeyboardInterrupt


@pytest.fixture
def unfinished(toy_root, tmp_path) -> Path:
    with pytest.raises(KeyboardInterrupt):
        Interrupted(toy_cfg(toy_root, tmp_path)).train()
    return tmp_path


def change(path: Path, how: Callable[[dict], object]) -> None:
    state = load_checkpoint(path)
    how(state)
    save_plain(state, path)


def set_entry(*keys: object, value: object = None) -> Callable[[dict], None]:
    """Put a value deep into the state; a KeyError of the test itself if the place isn't there."""

    def how(state: dict) -> None:
        for key in keys[:-1]:
            state = state[key]
        state[keys[-1]]
        state[keys[-1]] = value

    return how


MODEL = ("models", "model")
RESUMES = {
    **{f"no {key}": lambda state, key=key: state.pop(key) for key in ("identity", "models")},
    "no seconds": lambda state: state.pop("seconds"),
    "no epoch": lambda state: state["models"]["model"].pop("epoch"),
    "no state_dict": lambda state: state["models"]["model"].pop("state_dict"),
    "an identity of text": set_entry("identity", value="[1"),
    "an identity without data": lambda state: state["identity"].pop("data"),
    "a list of models": set_entry("models", value=[1]),
    "a model of text": set_entry(*MODEL, value="a"),
    "weights of text": set_entry(*MODEL, "state_dict", "2.bias", value="a"),
    "weights of another shape": set_entry(*MODEL, "state_dict", "2.bias", value=torch.ones(9)),
    "a negative epoch": set_entry(*MODEL, "epoch", value=-1),
    "an epoch of text": set_entry(*MODEL, "epoch", value="1"),
    "an optimizer's list": set_entry(*MODEL, "optimizer", value=[1]),
    "no groups": lambda state: state["models"]["model"]["optimizer"].pop("param_groups"),
    "a rate of text": set_entry(*MODEL, "optimizer", "param_groups", 0, "lr", value="a"),
    "a momentum of text": set_entry(*MODEL, "optimizer", "state", 0, "momentum_buffer", value="a"),
    "a momentum of another shape": set_entry(
        *MODEL, "optimizer", "state", 0, "momentum_buffer", value=torch.ones(2, 9)
    ),
    "a schedule's method": set_entry(*MODEL, "scheduler", value={"step": 1}),
    "rates of text": set_entry(*MODEL, "scheduler", "base_lrs", value=["a", "b"]),
    "fewer rates": set_entry(*MODEL, "scheduler", "base_lrs", value=[1.0]),
    "random numbers of none": set_entry(*MODEL, "rng", value={}),
    "random numbers of text": set_entry(*MODEL, "rng", "numpy", value=("a", "b", 1, 0, 0.0)),
    "a result of text": set_entry("best_result", value="a"),
}


@pytest.mark.parametrize("damage", RESUMES)
def test_a_resume_file_of_another_shape(unfinished, toy_root, damage):
    change(unfinished / "resume.pth.tar", RESUMES[damage])
    with pytest.raises(UserError) as error:
        ToyTrainer(toy_cfg(toy_root, unfinished)).train()
    assert str(unfinished) in str(error.value) and "\n" not in str(error.value)


def test_a_resume_file_that_is_no_file(unfinished, toy_root):
    (unfinished / "resume.pth.tar").unlink()
    (unfinished / "resume.pth.tar").mkdir()
    with pytest.raises(UserError, match="resume.pth.tar is a folder|no regular file"):
        ToyTrainer(toy_cfg(toy_root, unfinished)).train()


@pytest.mark.parametrize("content", ['{"epoch": 1', "[]", '{"epoch": "1"}', "{}", "[" * 100_000])
def test_metrics_that_are_cut(unfinished, toy_root, content):
    (unfinished / "metrics.jsonl").write_text(content)
    with pytest.raises(UserError, match="metrics.jsonl"):
        ToyTrainer(toy_cfg(toy_root, unfinished)).train()


@pytest.mark.parametrize("content", ["[]", '"a"', "", "null", "[" * 100_000])
def test_a_result_of_another_kind_is_no_result(toy_root, tmp_path, content):
    (tmp_path / "result.json").write_text(content)
    ToyTrainer(toy_cfg(toy_root, tmp_path, "OPTIM.MAX_EPOCH", 1)).train()
    assert json.loads((tmp_path / "result.json").read_text())["num_test"] == 12


CHECKPOINTS = {
    "no weights": lambda state: state.pop("state_dict"),
    "an epoch of text": set_entry("epoch", value="a"),
    "a result of text": set_entry("val_result", value="a"),
    "classes that are none": set_entry("class_keys", value=[1]),
    "weights of numbers": set_entry("state_dict", "2.bias", value=5),
}


@pytest.mark.parametrize("damage", CHECKPOINTS)
def test_a_checkpoint_of_another_shape(toy_root, tmp_path, damage):
    cfg = toy_cfg(toy_root, tmp_path, "OPTIM.MAX_EPOCH", 1)
    trainer = ToyTrainer(cfg)
    trainer.train()
    (path,) = (tmp_path / "model").glob("model.pth.tar-*")
    change(path, CHECKPOINTS[damage])
    with pytest.raises(UserError) as error:
        trainer.load_model(tmp_path)
    assert str(path) in str(error.value) or "does not fit the model" in str(error.value)


def test_a_pointer_that_leads_elsewhere(toy_root, tmp_path):
    ToyTrainer(toy_cfg(toy_root, tmp_path / "a", "OPTIM.MAX_EPOCH", 1)).train()
    for name in ("../../x", "", "/etc/passwd"):
        (tmp_path / "a" / "model" / "checkpoint").write_text(name)
        cfg = toy_cfg(toy_root, tmp_path / "b", "RESUME", str(tmp_path / "a"))
        with pytest.raises(UserError, match="no file of its folder|no checkpoint in"):
            ToyTrainer(cfg).train()
