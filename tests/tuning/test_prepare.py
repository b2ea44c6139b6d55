"""What a method makes of the training images before its first step."""

import json

import pytest
import torch

import train
from dassl.utils import UserError
from tests.tuning.small_methods import AUGMENTED, Caching, same, saved, with_seeds

pytestmark = pytest.mark.usefixtures("small_methods")


def test_what_was_prepared_is_tested_on_its_own_classes_and_refused_on_others(
    run, make_trainer, tmp_path
):
    _, _, result = run("OfCaching")
    assert Caching.calls == [10]
    again = make_trainer("OfCaching", output=tmp_path / "again", INPUT__TRANSFORMS=AUGMENTED)
    assert not again.method.means.any()
    again.load_model(tmp_path / "run")
    assert again.test() == pytest.approx(result["accuracy"])
    assert Caching.calls == [10]
    same(again.method.prepared_state(), saved(tmp_path / "run")["prepared"])
    state = {"means": torch.ones(3, 32), "noise": torch.ones(32)}
    with pytest.raises(UserError, match="other classes"):
        again.method.load_prepared(state, ["a", "b", "c"])
    with pytest.raises(UserError, match="another method"):
        again.method.load_prepared({"means": state["means"]}, again.method.classes.keys)


def test_an_original_file_without_what_a_test_reads_is_refused(make_trainer, tmp_path):
    """It would be tested with what was never prepared."""
    folder = tmp_path / "original" / "prompt_learner"
    folder.mkdir(parents=True)
    state = {"prompt_learner.w": torch.full((32,), 2.0)}
    torch.save({"state_dict": state, "epoch": 1}, folder / "model.pth.tar-1")
    for name in ("OfAnOriginal", "DePT_OfAnOriginal"):
        trainer = make_trainer(name)
        with pytest.raises(UserError, match="lacks means, noise, .*INIT_WEIGHTS"):
            trainer.load_model(str(tmp_path / "original"), epoch=1)
    file = str(folder / "model.pth.tar-1")
    trainer = make_trainer("OfAnOriginal", MODEL__INIT_WEIGHTS=file)  # a start prepares
    assert torch.equal(trainer.method.trained()["prompts.w"], state["prompt_learner.w"])


def test_a_method_that_only_prepares_is_saved_and_tested(command, tmp_path):
    train.main(command("OfCachingAlone"))
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert set(saved(tmp_path / "run")["prepared"]) == {"means", "noise"}
    folder = str(tmp_path / "run")
    extra = ("--eval-only", "--model-dir", folder)
    train.main(command("OfCachingAlone", *extra, output=tmp_path / "tested"))
    tested = json.loads((tmp_path / "tested" / "result.json").read_text())
    assert tested["accuracy"] == result["accuracy"] and len(Caching.calls) == 1


def test_seeds_that_prepare_other_sizes_are_refused_together(command, monkeypatch):
    def prepare(self, data):
        self.noise = torch.zeros(data.cfg.SEED, 1)

    monkeypatch.setattr(Caching, "prepare", prepare)
    with pytest.raises(UserError, match="OfCaching holds noise of several sizes"):
        train.main(with_seeds(command("OfCaching"), 1, 2))


def test_weights_to_start_from_go_before_what_is_prepared(run, make_trainer, tmp_path):
    state, _, _ = run("OfRemembering", "first")
    file = tmp_path / "first" / "prompt_learner" / "model.pth.tar-2"
    trainer = make_trainer("OfRemembering", MODEL__INIT_WEIGHTS=file)
    trainer.before_train()
    same(trainer.method.trained_state(), state)
    run("OfCaching", "second", DATASET__NUM_SHOTS=1)
    file = tmp_path / "second" / "prompt_learner" / "model.pth.tar-2"
    trainer = make_trainer("OfCaching", MODEL__INIT_WEIGHTS=file, output=tmp_path / "x")
    trainer.before_train()
    old = saved(tmp_path / "second")
    same(trainer.method.trained_state(), old["state_dict"])
    assert not torch.equal(trainer.method.means, old["prepared"]["means"])


def test_preparing_draws_nothing_of_the_training(run, monkeypatch):
    plain = run("OfCaching", "a")[0]
    prepare = Caching.prepare

    def draws_more(self, data):
        prepare(self, data)
        torch.randn(7)

    monkeypatch.setattr(Caching, "prepare", draws_more)
    same(run("OfCaching", "b")[0], plain)


def test_training_images_come_in_order_and_their_features_from_the_cache(make_trainer, monkeypatch):
    seen = []
    monkeypatch.setattr(Caching, "prepare", lambda self, data: seen.append(data))
    trainer = make_trainer("OfCaching", DATALOADER__FEATURE_CACHE="")
    trainer.before_train()
    (data,) = seen
    by_hand = torch.cat([trainer.encode_views(image) for image in data.images()])
    torch.testing.assert_close(data.features(), by_hand, rtol=1e-5, atol=1e-6)
    assert data.labels.tolist() == [item.label for item in data.dataset.train_x]
    assert len(data) == len(by_hand) == 10


def test_rows_of_training_images_are_as_many_as_the_checkpoints(run, make_trainer, tmp_path):
    state, _, _ = run("OfRemembering", OPTIM__MAX_EPOCH=2)
    assert len(state["memory.rows"]) == 10
    other = make_trainer("OfRemembering", output=tmp_path / "other", DATASET__NUM_SHOTS=1)
    assert len(other.method.memory["rows"]) == 5
    other.load_model(tmp_path / "run")
    same(other.method.trained_state(), state)
