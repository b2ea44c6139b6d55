"""Trackers with stand-ins for the libraries."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import pytest

from dassl.config import config_values
from dassl.engine import build_trainer
from dassl.utils import UserError


@pytest.fixture
def calls(monkeypatch) -> list[tuple]:
    """What is called of `wandb` and `mlflow`, in order."""
    seen: list[tuple] = []

    def note(name):
        return lambda *args, **kwargs: seen.append((name, args, kwargs))

    run = SimpleNamespace(**{n: note(f"wandb.{n}") for n in ("define_metric", "log", "finish")})

    def init(**kwargs):
        seen.append(("wandb.init", (), kwargs))
        return run

    names = ("start_run", "log_dict", "set_tag", "log_metric", "end_run")
    mlflow = SimpleNamespace(**{name: note(f"mlflow.{name}") for name in names})
    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(init=init))
    monkeypatch.setitem(sys.modules, "mlflow", mlflow)
    return seen


def test_trackers_get_what_tensorboard_gets(make_cfg, calls):
    cfg = make_cfg("TRAIN.TRACKERS", ("wandb", "mlflow"))
    build_trainer(cfg).train()
    names = [name for name, _, _ in calls]
    for module, start, end in (("wandb", "init", "finish"), ("mlflow", "start_run", "end_run")):
        own = [name for name in names if name.startswith(module)]
        assert own[0] == f"{module}.{start}" and own[-1] == f"{module}.{end}"
    (config,) = (kwargs["config"] for name, _, kwargs in calls if name == "wandb.init")
    assert config["OPTIM"]["LR"] == cfg.OPTIM.LR
    logged = [args[0] for name, args, _ in calls if name == "wandb.log"]
    tags = [tag for entry in logged for tag in entry if tag != "step"]
    assert tags == [args[0] for name, args, _ in calls if name == "mlflow.log_metric"]
    assert {"train/loss", "train/lr", "test/accuracy"} <= set(tags)


def test_no_tracker_unless_asked_for(make_cfg, calls):
    cfg = make_cfg()
    build_trainer(cfg).train()
    assert calls == []
    assert config_values(cfg) == config_values(make_cfg("TRAIN.TRACKERS", ("wandb",)))


@pytest.mark.parametrize(
    ("name", "message"), [("wandbb", "mean 'wandb'"), ("wandb", "pip install")]
)
def test_an_unknown_or_missing_tracker_is_one_line(make_cfg, monkeypatch, name, message):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(UserError, match=message):
        build_trainer(make_cfg("TRAIN.TRACKERS", (name,))).train()
