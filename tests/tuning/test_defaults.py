"""The defaults of all methods: made once, copied each time, anew once a method comes or goes."""

from __future__ import annotations

from types import ModuleType

import trainers
from tuning import defaults
from tuning.defaults import default_cfg


def test_copies_are_ones_own_and_a_method_is_asked_once(monkeypatch):
    asked = []
    method = ModuleType("added")

    def extend_cfg(cfg):
        asked.append(1)
        cfg.TRAINER.ADDED_HERE = type(cfg)()
        cfg.TRAINER.ADDED_HERE.NUMBERS = [1, 2]

    method.extend_cfg = extend_cfg
    before = default_cfg()
    monkeypatch.setattr(defaults, "_known", {})
    modules = [*trainers.modules(), method]
    monkeypatch.setattr(trainers, "modules", lambda: modules)
    one, other = default_cfg(), default_cfg()
    assert one == other and len(asked) == 1
    one.TRAINER.ADDED_HERE.NUMBERS.append(3)
    one.OPTIM.LR = 7.0
    assert default_cfg() == other and other.TRAINER.ADDED_HERE.NUMBERS == [1, 2]
    assert other.public_options == one.public_options
    modules.remove(method)
    assert default_cfg() == before and "ADDED_HERE" not in default_cfg().TRAINER
