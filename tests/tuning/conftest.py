"""Fixtures of the methods in small_methods.py."""

import json
import shutil

import pytest

import train
from dassl.config import CfgNode, defaults
from dassl.engine import TRAINER_REGISTRY
from tests.tuning.small_methods import AUGMENTED, OWN, Caching, saved
from trainers.dept import twin_of
from tuning import feature_cache


@pytest.fixture
def small_methods(monkeypatch):
    """The small methods' trainers and their twins are registered, and a config node of theirs."""
    feature_cache._memory.clear()
    Caching.calls.clear()

    def extend(cfg):
        cfg.TRAINER.LEARNER = CfgNode()
        cfg.TRAINER.LEARNER.TEACHER = ""
        cfg.TRAINER.LEARNER.PREC = "fp32"

    monkeypatch.setattr(defaults, "_EXTENSIONS", [*defaults._EXTENSIONS, extend])
    for trainer in [*OWN, *(twin_of(trainer) for trainer in OWN)]:
        monkeypatch.setitem(TRAINER_REGISTRY._objects, trainer.__name__, trainer)


@pytest.fixture
def root(picture_root, tmp_path):
    ignored = shutil.ignore_patterns(".cache")
    return shutil.copytree(picture_root, tmp_path / "root", ignore=ignored)


@pytest.fixture
def run(command, tmp_path, root, small_methods):
    """run(trainer, output, …) → the state dict saved, the losses and the result."""

    def go(name, output="run", *extra, **options):
        folder = tmp_path / output
        options = {"INPUT__TRANSFORMS": AUGMENTED, **options}
        train.main(command(name, "--root", str(root), *extra, output=folder, **options))
        lines = (folder / "metrics.jsonl").read_text().splitlines()
        result = json.loads((folder / "result.json").read_text())
        return saved(folder)["state_dict"], [json.loads(x)["losses"] for x in lines], result

    return go
