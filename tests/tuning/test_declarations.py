"""Whatever a method declares: it resumes, trains with other seeds, is recorded."""

import pytest
import torch

import train
from dassl.utils import UserError
from tests.tuning.small_methods import (
    Caching,
    WithOthers,
    same,
    saved,
    with_seeds,
)
from tuning.method import Classes, unit

pytestmark = pytest.mark.usefixtures("small_methods")


class Killed(Exception):
    pass


TOGETHER = ("OfRemembering", "OfTwoViews", "OfInTheLastBlock", "OfTwoOptimizers", "DePT_OfCaching")
KEEPING = ("OfFollowing", "OfBanking", "OfNormed", "DePT_OfFollowing")
ALL = (*TOGETHER, *KEEPING, "OfReading", "OfOnSeveral", "OfAlternating")


@pytest.mark.parametrize("name", ALL)
def test_resumed_equals_uninterrupted(make_trainer, tmp_path, name):
    def build(output):
        return make_trainer(name, output=tmp_path / output, OPTIM__MAX_EPOCH=2)

    whole = build("whole")
    whole.train()
    killed = build("killed")
    step, calls = killed.forward_backward, []

    def dies(batch):
        calls.append(1)
        if len(calls) == killed.num_batches * 2:
            raise Killed
        return step(batch)

    killed.forward_backward = dies
    with pytest.raises(Killed):
        killed.train()
    looked = len(Caching.calls)
    resumed = build("killed")
    resumed.train()
    assert resumed.start_epoch == 1 and len(Caching.calls) == looked
    same(resumed.method.trained_state(), whole.method.trained_state())
    same(resumed.method.prepared_state(), whole.method.prepared_state())


@pytest.mark.parametrize(("name", "kept"), zip(KEEPING, (
    {"slow.weight"},
    {"bank"},
    {"norm.running_mean", "norm.running_var", "norm.num_batches_tracked"},
    {"slow.weight"},
), strict=True))  # fmt: skip
def test_what_training_changes_beside_parameters_is_kept(run, make_trainer, tmp_path, name, kept):
    _, _, result = run(name)
    assert set(saved(tmp_path / "run")["prepared"]) == kept
    tested = make_trainer(name, output=tmp_path / "tested")
    tested.load_model(tmp_path / "run")
    same(tested.method.prepared_state(), saved(tmp_path / "run")["prepared"])
    assert tested.test() == pytest.approx(result["accuracy"])
    state = saved(tmp_path / "run")["prepared"]
    with pytest.raises(UserError, match="another method"):
        tested.method.load_prepared({**state, "other": torch.ones(1)}, None)


def test_what_may_have_a_row_per_class_is_put_to_no_other_classes(run, make_trainer, monkeypatch):
    run("OfPerClass")
    trainer = make_trainer("OfPerClass", DATASET__SUBSAMPLE_CLASSES="base")
    state, keys = {"seen": torch.arange(3.0)}, ["a", "b", "c"]
    with pytest.raises(UserError, match="seen may have a row per class"):
        trainer.method.load_prepared(state, keys)
    monkeypatch.setattr(type(trainer.method), "prepared", ("seen",))
    trainer.method.load_prepared(state, keys)
    assert trainer.method.seen.tolist() == [0, 1, 2]


@pytest.mark.parametrize("name", ["OfBanking", "OfNormed", "OfPerClass", "OfFollowing"])
def test_several_seeds_refuse_what_changes_in_a_step(command, name):
    with pytest.raises(UserError, match=f"{name} (changes|has a step of its own)|can't be mapped"):
        train.main(with_seeds(command(name), 1, 2))


@pytest.mark.parametrize("name", TOGETHER)
def test_several_seeds_at_once_equal_each_alone(command, tmp_path, name):
    train.main(with_seeds(command(name, output=tmp_path / "together"), 1, 2))
    for seed in (1, 2):
        train.main(with_seeds(command(name, output=tmp_path / f"alone{seed}"), seed))
        together = saved(tmp_path / "together" / f"seed{seed}")
        alone = saved(tmp_path / f"alone{seed}")
        same(together["state_dict"], alone["state_dict"], rtol=1e-4, atol=1e-5)
        same(together.get("prepared", {}), alone.get("prepared", {}), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", ["OfAlternating", "DePT_OfAlternating"])
def test_several_seeds_refuse_a_step_of_a_methods_own(command, name):
    with pytest.raises(UserError, match=rf"{name} has a step of its own \(Alternating\.own_step\)"):
        train.main(with_seeds(command(name), 1, 2))


@pytest.mark.parametrize("name", ["OfAlternating", "OfTwoOptimizers", "DePT_OfAlternating"])
def test_a_methods_own_optimizers_train_what_is_theirs(make_trainer, tmp_path, name):
    trainer = make_trainer(name, output=tmp_path / "run")
    main, own = (trainer._optims[key] for key in (trainer.model_name, "of_image"))
    held = [[p for group in optim.param_groups for p in group["params"]] for optim in (main, own)]
    trained = trainer.method.trained()
    assert [id(p) for p in held[1]] == [id(trained["of_image.weight"])]
    assert {id(p) for part in held for p in part} == {id(p) for p in trained.values()}
    before = trainer.method.trained_state()
    trainer.train()
    assert all(not torch.equal(p, before[key]) for key, p in trainer.method.trained().items())
    assert own.param_groups[0]["lr"] == pytest.approx(1e-3 / 4)


def test_a_step_of_its_own_is_the_one_written_by_hand(make_trainer):
    trainer = make_trainer("OfAlternating", OPTIM__MAX_EPOCH=1, OPTIM__WARMUP_EPOCH=-1)
    method, by_hand = trainer.method, make_trainer("OfAlternating").method
    trainer.set_model_mode("train")
    trainer.epoch, trainer.batch_idx, trainer.num_batches = 0, 0, 2
    batch = next(iter(trainer.train_loader_x))
    trainer.forward_backward(batch)
    first = torch.optim.SGD(
        by_hand.of_text.parameters(), lr=0.0035, momentum=0.9, weight_decay=5e-4
    )
    for optim in (first, by_hand.own_optimizers(None)["of_image"][0]):
        by_hand.zero_grad()
        loss = by_hand.losses(by_hand.features(batch["img"]), batch["label"])
        sum(loss.values()).backward()
        optim.step()
    same(by_hand.trained_state(), method.trained_state(), rtol=1e-6, atol=1e-7)


def test_other_names_come_by_declaration(make_trainer):
    options = {"DATASET__SUBSAMPLE_CLASSES": "base"}
    method = make_trainer("OfWithOthers", **options).method
    assert len(method.everyone) == 5 > len(method.classes.names)
    assert [*method.classes.names, *method.classes.others.values()] == (
        method.classes.with_others().names
    )
    torch.testing.assert_close(method.everyone[: len(method.hand)], unit(method.hand))
    assert not make_trainer("OfCaching", **options).method.classes.others
    assert Classes(["a"], ["k"]).with_others().names == ["a"]


def test_a_result_says_what_was_seen(run, make_trainer, monkeypatch):
    options = {"DATASET__SUBSAMPLE_CLASSES": "base"}
    assert run("OfWithOthers", "a", **options)[2]["sees"] == ["new_class_names"]
    assert run("DePT_OfWithOthers", "b", **options)[2]["sees"] == ["new_class_names"]
    assert run("OfCaching", "c")[2]["sees"] == []
    assert run("OfWithOthers", "d")[2]["sees"] == []  # there are no others
    monkeypatch.setattr(WithOthers, "sees", ("the_future",))
    with pytest.raises(UserError, match="the_future"):
        make_trainer("OfWithOthers")
