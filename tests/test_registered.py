"""The twins that stand for all leave nothing out that any twin has."""

import pytest

from dassl.engine import TRAINER_REGISTRY
from tests.registered import (
    BESIDES,
    every_trainer,
    is_twin,
    passed_on,
    some_twins,
    standing_for_all,
)
from tuning.naming import is_wrapped, wrapped_name


def things(names):
    return set().union(*(passed_on(TRAINER_REGISTRY.get(n).method_class) for n in names))


def test_they_have_everything_that_any_has():
    twins = [name for name in every_trainer() if is_wrapped(name)]
    standing = standing_for_all()
    assert things(standing) == things(twins)
    assert {wrapped_name(name) for name in BESIDES} <= set(standing) < set(twins)
    assert "nothing" in things(standing)  # the plain case


@pytest.mark.parametrize("every", [False, True])
def test_no_method_is_left_out(monkeypatch, every):
    monkeypatch.setenv("EVERY_TRAINER", "1" if every else "")
    names = every_trainer()
    left_out = set(names) - set(some_twins(names))
    assert all(is_twin(name) for name in left_out)
    assert bool(left_out) != every


def test_a_new_thing_brings_its_twin(monkeypatch):
    twin = TRAINER_REGISTRY.get("DePT_EPT")
    assert "DePT_EPT" not in standing_for_all()
    own = type("Own", (twin.method_class,), {"views_wanted": 2})
    monkeypatch.setattr(twin, "method_class", own)
    assert "DePT_EPT" in standing_for_all()
