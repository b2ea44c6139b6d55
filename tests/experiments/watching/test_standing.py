"""How far runs are, and what is honest to say of the time to go."""

from __future__ import annotations

import pytest

from experiments.watching.epochs import Epochs
from experiments.watching.standing import (
    DONE,
    FAILED,
    RUNNING,
    STOPPED,
    WAITING,
    Process,
    Run,
    Standing,
    kinds_of,
    steps_under_way,
)

NOW = 1000.0


def name(seed: int, stage: str = "base2new/train_base", trainer: str = "CoOp", **place) -> str:
    config, shots = place.get("config", "mini"), place.get("shots", 16)
    return f"{stage}/dtd/shots_{shots}/{trainer}/{config}/seed{seed}"


def done(seed: int, seconds: float | None = 10.0, chain: str = "a", **more) -> Run:
    return Run(name(seed), chain, DONE, accuracy=50.0, seconds=seconds, **more)


def to_come(seed: int, chain: str = "a") -> Run:
    return Run(name(seed), chain, WAITING)


def under_way(seed: int, done: int, at: float, each: float | None, chain: str = "a", **more) -> Run:
    """It began 100 s ago."""
    epochs = Epochs(done, 10, more.pop("loss", None), at, each)
    return Run(name(seed), chain, RUNNING, since=more.pop("since", 900.0), epochs=epochs, **more)


def of(*runs: Run, at_once: int = 1) -> Standing:
    return Standing("plan", "", list(runs), [], NOW, at_once=at_once)


def test_nothing_is_said_before_there_is_a_base():
    standing = of(to_come(1), under_way(2, 0, 0.0, None))
    assert standing.to_go() == (0.0, True) and standing.kinds[0].each is None
    skipped = of(done(1, seconds=None), to_come(2))
    assert skipped.to_go() == (0.0, True)
    assert of(done(1)).to_go() == (0.0, False)


def test_complete_runs_are_a_base():
    assert of(done(1, 10), done(2, 20), to_come(3), to_come(4)).to_go() == (30.0, False)


def test_so_are_the_epochs_of_those_under_way():
    """A start of 10 s, two of ten epochs of 15 s each, the third for 60 s: it is slow."""
    going = under_way(1, 2, 940.0, 15.0)
    assert of(going).kinds[0].each == 10 + 10 * 15
    assert of(going).to_go() == (8 * 15 - 60, False)
    assert of(going, to_come(2)).to_go() == (60 + 160, False)
    assert of(under_way(1, 9, 940.0, 15.0)).to_go() == (0.0, False)  # longer than expected


def test_of_runs_side_by_side_each_took_its_share():
    both = [under_way(seed, 2, 940.0, 15.0, together=2) for seed in (1, 2)]
    assert of(*both).kinds[0].each == 80.0
    assert of(*both).to_go() == (60.0, False)


def test_what_a_resumed_run_had_before_does_not_count_as_speed():
    resumed = under_way(1, 8, 940.0, 15.0, before=6)
    assert of(resumed).kinds[0].each == 160.0
    assert of(under_way(1, 6, 899.0, 15.0, before=6)).kinds[0].each is None
    assert of(done(1, 10, before=5, epochs=Epochs(of=10)), to_come(2)).to_go() == (20.0, False)


def test_a_test_under_way_takes_what_others_took():
    going = Run(name(2), "a", RUNNING, tests=True, since=996.0)
    assert of(done(1), going).to_go() == (6.0, False)
    assert of(going).to_go() == (0.0, True)


def test_chains_go_side_by_side_and_the_runs_of_one_in_turn():
    runs = [done(0)] + [to_come(seed, chain) for seed, chain in enumerate("aabc", start=1)]
    assert of(*runs, at_once=1).to_go()[0] == 40.0
    assert of(*runs, at_once=2).to_go()[0] == 20.0
    assert of(*runs, at_once=9).to_go()[0] == 20.0  # the first chain's two


def test_a_kind_without_a_base_makes_it_at_least():
    other = Run(name(1, trainer="MaPLe"), "b", WAITING)
    standing = of(done(1), to_come(2), other)
    assert standing.to_go() == (10.0, True)
    assert [standing.to_go(kind) for kind in standing.kinds] == [(10.0, False), (0.0, True)]


def test_failed_and_stopped_runs_take_no_time():
    runs = [done(1), Run(name(2), "a", FAILED), Run(name(3), "a", STOPPED)]
    assert of(*runs).to_go() == (0.0, False)


def test_where_nobody_is_at_it_there_is_no_time_to_go():
    runs = [done(1), to_come(2)]
    dead = Process("host", 7, 3, 0.0, None, False)
    standing = Standing("plan", "", runs, [dead], NOW)
    assert not standing.goes_on and standing.to_go() == (0.0, False)
    alive = Process("host", 8, 3, NOW, None, True)
    standing = Standing("plan", "", runs, [dead, alive], NOW)
    assert standing.width == 3 and standing.to_go() == (10.0, False)


def test_kinds_are_named_by_what_differs():
    settings = "mini@OPTIM.MAX_EPOCH=3"
    runs = [
        Run(name(seed, stage, config=f"{settings},TRAINER.DEPT.WEIGHT={w}"), "a", DONE)
        for seed in (1, 2)
        for stage in ("base2new/train_base", "base2new/test_new")
        for w in (0.1, 0.7)
    ]
    assert [kind.name for kind in kinds_of(runs)] == [
        f"CoOp WEIGHT={w} {stage}" for stage in ("train_base", "test_new") for w in (0.1, 0.7)
    ]
    many = [Run(name(1, f"corruptions/fog_{i}_new"), "a", WAITING) for i in range(1, 6)]
    assert [kind.name for kind in kinds_of(many)] == ["CoOp corruptions"]
    shots = [Run(name(1, shots=n), "a", WAITING) for n in (1, 2)]
    assert [kind.name for kind in kinds_of(shots)] == [f"CoOp {n} shots train_base" for n in (1, 2)]
    assert [kind.name for kind in kinds_of([Run("elsewhere", "a", DONE)])] == ["other runs"]


@pytest.mark.parametrize("changed", [{"chain": "b"}, {"since": 950.0}, {"tests": True}])
def test_a_step_is_what_began_as_one(changed):
    runs = [under_way(i, 4 - i, 940.0, 15.0, loss=float(i)) for i in (1, 2)]
    (step,) = steps_under_way([*runs, to_come(3)])
    assert step.slowest is runs[1] and step.loss == 1.5
    assert len(steps_under_way([*runs, under_way(3, 2, 940.0, 15.0, **changed)])) == 2


def test_what_is_told():
    runs = [done(1), under_way(2, 1, 940.0, 15.0), to_come(3), Run(name(4), "a", FAILED)]
    assert of(*runs).told == "1 of 4 runs complete, 1 under way, 1 failed, 1 to come"
