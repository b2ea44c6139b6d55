from __future__ import annotations

import os
from collections import OrderedDict
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from dassl.utils import (
    UserError,
    count_num_param,
    find_checkpoint,
    init_network_weights,
    load_checkpoint,
    load_pretrained_weights,
    newest_checkpoint,
    open_all_layers,
    open_specified_layers,
    resume_from_checkpoint,
    save_checkpoint,
    save_plain,
    user_errors,
)


def state(epoch: int = 1, **more) -> dict:
    return {"state_dict": {"module.weight": torch.ones(2)}, "epoch": epoch, **more}


def test_saved_files_and_the_note_of_the_newest(tmp_path):
    save_checkpoint(state(1), tmp_path)
    save_checkpoint(state(2), tmp_path, is_best=True)
    assert newest_checkpoint(tmp_path) == tmp_path / "model.pth.tar-2"
    best = load_checkpoint(tmp_path / "model-best.pth.tar")
    assert best["epoch"] == 2 and list(best["state_dict"]) == ["weight"]
    save_checkpoint(state(3), tmp_path, model_name="model-best.pth.tar")
    assert load_checkpoint(tmp_path / "model-best.pth.tar")["epoch"] == 3


@pytest.mark.parametrize("value", [np.float64(1), Fraction(1, 2), lambda: 0, [np.zeros(2)]])
def test_only_plain_values_are_saved(tmp_path, value):
    with pytest.raises(TypeError, match=r"\['extra'\]"):
        save_plain({"extra": value}, tmp_path / "a")
    assert os.listdir(tmp_path) == []


class _Touch:
    """Its pickle runs a command when it is read the ordinary way."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


def test_nothing_in_a_file_is_executed(tmp_path):
    torch.save(state(extra=_Touch(tmp_path / "executed")), tmp_path / "a")
    with pytest.raises(UserError, match=r"holds objects that are not loaded: \w+\.system"):
        load_checkpoint(tmp_path / "a")
    assert os.listdir(tmp_path) == ["a"]


class _Warmup(torch.optim.lr_scheduler.LRScheduler):
    """Keeps another scheduler as an object, as Dassl's own do."""

    def __init__(self, optimizer, successor) -> None:
        self.successor = successor
        super().__init__(optimizer)

    def get_lr(self):
        return [1e-5 for _ in self.base_lrs]


def test_checkpoint_of_the_original_kind(tmp_path):
    parameter = nn.Parameter(torch.ones(2))
    optimizer = torch.optim.SGD([parameter], lr=0.1, momentum=0.9)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 10.0)
    parameter.sum().backward()
    optimizer.step()  # fills optimizer.state, a defaultdict
    torch.save(
        {
            "state_dict": OrderedDict(ctx=parameter.detach()),
            "epoch": 5,
            "optimizer": optimizer.state_dict(),
            "scheduler": _Warmup(optimizer, scheduler).state_dict(),
            "val_result": np.float64(1.0),
        },
        tmp_path / "a",
    )
    checkpoint = load_checkpoint(tmp_path / "a")
    assert torch.equal(checkpoint["state_dict"]["ctx"], parameter)
    assert checkpoint["epoch"] == 5
    assert torch.equal(checkpoint["optimizer"]["state"][0]["momentum_buffer"], torch.ones(2))
    assert "successor" not in checkpoint["scheduler"] and "val_result" not in checkpoint


def test_unreadable_files(tmp_path):
    whole = tmp_path / "whole"
    save_plain(state(), whole)
    (tmp_path / "half").write_bytes(whole.read_bytes()[:300])
    (tmp_path / "text").write_text("hello")
    (tmp_path / "empty").touch()
    for name in ("half", "text", "empty"):
        with pytest.raises(UserError, match=f"{name} is not a readable checkpoint"):
            load_checkpoint(tmp_path / name)
    with pytest.raises(UserError, match="no checkpoint at"):
        load_checkpoint(tmp_path / "none")
    torch.save([1], tmp_path / "list")
    with pytest.raises(UserError, match="holds a list"):
        load_checkpoint(tmp_path / "list")


def test_find_checkpoint(tmp_path):
    for epoch in (2, 10):
        save_checkpoint(state(epoch), tmp_path / "prompt")
    assert find_checkpoint(tmp_path, "prompt").name == "model.pth.tar-10"
    assert find_checkpoint(tmp_path, "prompt", 2).name == "model.pth.tar-2"
    assert find_checkpoint(tmp_path, "another_name").parent.name == "prompt"
    with pytest.raises(UserError, match=r"no checkpoint of epoch 3 \(there are: 2, 10\)"):
        find_checkpoint(tmp_path, "prompt", 3)
    with pytest.raises(UserError, match="no such model directory"):
        find_checkpoint(tmp_path / "none", "prompt")
    save_checkpoint(state(4), tmp_path / "second", model_name="model-best.pth.tar")
    assert find_checkpoint(tmp_path, "second").name == "model-best.pth.tar"
    with pytest.raises(UserError, match="'third' .found: prompt, second"):
        find_checkpoint(tmp_path, "third")


def test_resume_from_checkpoint(tmp_path):
    def parts():
        model = nn.Linear(2, 2)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        return model, optimizer, torch.optim.lr_scheduler.StepLR(optimizer, 1)

    one = parts()
    one[0](torch.ones(1, 2)).sum().backward()
    one[1].step()
    one[2].step()
    names = ("state_dict", "optimizer", "scheduler")
    dicts = {name: part.state_dict() for name, part in zip(names, one, strict=True)}
    save_checkpoint({**dicts, "epoch": 1}, tmp_path)
    two = parts()
    assert resume_from_checkpoint(tmp_path, *two) == 1
    assert torch.equal(one[0].weight, two[0].weight)
    assert two[1].param_groups[0]["lr"] == pytest.approx(0.01) and two[2].last_epoch == 1


def test_pretrained_weights_are_taken_where_they_fit(tmp_path, capsys):
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 3))
    given = {"module.0.weight": torch.ones(2, 2), "1.weight": torch.ones(4, 2), "x": torch.ones(1)}
    save_plain({"state_dict": given}, tmp_path / "a")
    load_pretrained_weights(model, tmp_path / "a")
    assert torch.equal(model[0].weight, torch.ones(2, 2))
    assert "Not used, since name or shape differ: 1.weight, x" in capsys.readouterr().out
    save_plain({"x": torch.ones(1)}, tmp_path / "b")
    with pytest.raises(UserError, match="fits no parameter of Sequential"):
        load_pretrained_weights(model, tmp_path / "b")


def test_layers():
    model = nn.Sequential(OrderedDict(one=nn.Linear(2, 3), norm=nn.BatchNorm1d(3)))
    assert count_num_param(model) == 9 + 6
    open_specified_layers(model, "norm")
    assert [p.requires_grad for p in model.parameters()] == [False, False, True, True]
    assert not model.one.training and model.norm.training
    open_all_layers(model)
    assert all(p.requires_grad for p in model.parameters())
    with pytest.raises(AttributeError, match="two"):
        open_specified_layers(model, ["two"])
    init_network_weights(model, "orthogonal", gain=1.0)
    assert torch.allclose(model.one.weight.T @ model.one.weight, torch.eye(2), atol=1e-6)
    assert model.one.bias.abs().sum() == 0 and torch.equal(model.norm.weight, torch.ones(3))
    with pytest.raises(ValueError, match="init_type"):
        init_network_weights(model, "zeros")


def test_a_full_disk_is_told_as_such(tmp_path, full_disk):
    path = tmp_path / "model.pth.tar-1"
    save_plain({"x": torch.zeros(10)}, path)
    with full_disk(), pytest.raises(OSError) as failure:
        save_plain({"x": torch.zeros(10_000)}, path)
    assert failure.value.filename == str(path)
    assert [file.name for file in tmp_path.iterdir()] == [path.name]
    assert len(torch.load(path, weights_only=True)["x"]) == 10


def test_a_full_disk_ends_a_command_in_one_line(tmp_path, full_disk, capsys):
    with full_disk(), pytest.raises(SystemExit) as end, user_errors():
        save_plain({"x": torch.zeros(10_000)}, tmp_path / "model.pth.tar-1")
    assert end.value.code == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: cannot write") and "model.pth.tar-1: File too large" in line
    assert "same command again" in line
