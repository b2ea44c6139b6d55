"""Learning from a trained run."""

import json
import shutil

import pytest
import torch

import train
from dassl.utils import UserError
from tests.tuning.small_methods import AUGMENTED, same, saved, with_seeds
from tuning import feature_cache
from tuning.teacher import Teacher, digest_of

pytestmark = pytest.mark.usefixtures("small_methods")


@pytest.fixture
def teacher(run, tmp_path):
    run("CoOp", "teacher", OPTIM__LR=0.1, DATALOADER__FEATURE_CACHE="")
    feature_cache._memory.clear()
    return tmp_path / "teacher"


def test_a_teachers_logits_are_its_runs(run, teacher, make_trainer, tmp_path):
    options = {"TRAINER__LEARNER__TEACHER": teacher, "INPUT__TRANSFORMS": AUGMENTED}
    trainer = make_trainer("OfLearner", output=tmp_path / "x", **options)
    assert not any("context" in name for name, _ in trainer.method.named_parameters())
    batch = next(iter(trainer.train_loader_x))
    taught = trainer.method.train().features(batch["img"]).more["teacher"]
    its = trainer.method.teacher_run.run.logits(batch["img"])
    torch.testing.assert_close(taught, its)
    assert "teacher" not in trainer.method.eval().features(batch["img"]).more


@pytest.mark.parametrize("name", ["OfLearner", "DePT_OfLearner"])
def test_learning_from_a_teacher(run, teacher, tmp_path, name, monkeypatch):
    options = {"TRAINER__LEARNER__TEACHER": teacher}
    plain = run(name, "plain", **options, MODEL__FAST=False)
    first = run(name, "first", **options)
    asked = []
    monkeypatch.setattr(Teacher, "logits", lambda self, image: asked.append(1) or 1 / 0)
    feature_cache._memory.clear()
    again = run(name, "again", **options)
    assert not asked and first[1] == again[1]
    same(first[0], again[0])
    for losses, others in zip(plain[1], first[1], strict=True):
        assert losses == pytest.approx(others, rel=1e-4) and losses["learned"] > 0
    assert first[2]["sees"] == ["teacher"]
    sha = first[2]["identity"]["files"]["TRAINER.LEARNER.TEACHER"]
    assert len(sha) == 64
    assert "TRAINER.LEARNER.TEACHER" not in first[2]["identity"]["settings"]
    assert all("ctx" not in key for key in first[0])


def test_a_trained_learner_is_tested_without_its_teacher(run, teacher, command, tmp_path):
    from tuning.run import open_run

    its = digest_of(open_run(teacher))
    _, _, result = run("OfLearner", TRAINER__LEARNER__TEACHER=teacher)
    assert result["identity"]["files"]["TRAINER.LEARNER.TEACHER"] == its
    shutil.rmtree(teacher)
    extra = ("--eval-only", "--model-dir", str(tmp_path / "run"))
    train.main(command("OfLearner", *extra, output=tmp_path / "t", INPUT__TRANSFORMS=AUGMENTED))
    tested = json.loads((tmp_path / "t" / "result.json").read_text())
    assert tested["accuracy"] == pytest.approx(result["accuracy"], abs=20)
    assert open_run(tmp_path / "run").method().eval() is not None


def test_several_seeds_learn_from_one_teacher(command, teacher, tmp_path):
    options = {"TRAINER__LEARNER__TEACHER": teacher, "INPUT__TRANSFORMS": AUGMENTED}
    train.main(with_seeds(command("OfLearner", output=tmp_path / "both", **options), 1, 2))
    for seed in (1, 2):
        alone = tmp_path / f"alone{seed}"
        train.main(with_seeds(command("OfLearner", output=alone, **options), seed))
        together = saved(tmp_path / "both" / f"seed{seed}")["state_dict"]
        same(together, saved(alone)["state_dict"], rtol=1e-4, atol=1e-5)


def test_a_teacher_that_does_not_fit_is_refused(make_trainer, teacher, tmp_path, command):
    with pytest.raises(UserError, match=r"TRAINER\.LEARNER\.TEACHER is empty"):
        make_trainer("OfLearner", TRAINER__LEARNER__TEACHER="").train()
    options = {"TRAINER__LEARNER__TEACHER": teacher, "INPUT__PIXEL_MEAN": "[0.4, 0.4, 0.4]"}
    with pytest.raises(UserError, match=r"images of INPUT\.PIXEL_MEAN"):
        make_trainer("OfLearner", output=tmp_path / "other", **options).train()
    options = {"TRAINER__LEARNER__TEACHER": tmp_path / "nowhere"}
    with pytest.raises(UserError, match="is no run of"):
        make_trainer("OfLearner", output=tmp_path / "none", **options).train()
