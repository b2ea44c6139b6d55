"""PromptKD: its loss by hand, the teacher's texts in its checkpoints, public checkpoints.

Its numbers are those of its public code: tests/originals.
"""

import json
import shutil

import pytest
import torch

import train
import trainers
from dassl.utils import UserError
from trainers.promptkd import PromptKDMethod
from tuning.method import Features, unit
from tuning.run import open_run

trainers.modules()


def test_its_loss_by_hand(make_trainer):
    options = {"TRAINER__PROMPTKD__KD_WEIGHT": 7.0, "TRAINER__PROMPTKD__TEMPERATURE": 2.0}
    method = make_trainer("PromptKD", **options).method.train()
    image, z = torch.randn(3, 32), 5 * torch.randn(3, 5)
    text = method.encode_text()
    s = method.encoders.temperature * unit(image) @ unit(text).t()
    expected = 0.0
    for student, teacher in zip(s / 2, z / 2, strict=True):
        p, q = teacher.softmax(0), student.softmax(0)
        expected += float((p * (p / q).log()).sum())
    features = Features(image, text, {"teacher": z})
    found = method.losses(features, torch.zeros(3, dtype=torch.long))
    assert set(found) == {"kd"}
    assert found["kd"].item() == pytest.approx(7 * 4 * expected / 15, rel=1e-4)


def test_the_teachers_texts_are_its_classifier(make_trainer, teacher_run):
    method = make_trainer("PromptKD").method
    expected = open_run(teacher_run).method(method.classes).text_features()
    torch.testing.assert_close(method.text_features(), expected)


def test_a_student_is_tested_on_some_classes_without_its_teacher(
    command, teacher_run, tmp_path, make_trainer
):
    own = tmp_path / "teacher"
    shutil.copytree(teacher_run, own)
    train.main(command("PromptKD", TRAINER__PROMPTKD__TEACHER=own))
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert result["sees"] == list(PromptKDMethod.sees)
    shutil.rmtree(own)
    whole = open_run(tmp_path / "run").method().eval()
    assert whole.projector.conv1[1].num_batches_tracked > 0
    extra = ("--eval-only", "--model-dir", str(tmp_path / "run"))
    for classes, rows in (("base", slice(0, 3)), ("new", slice(3, 5))):
        options = {"DATASET__SUBSAMPLE_CLASSES": classes}
        train.main(command("PromptKD", *extra, output=tmp_path / classes, **options))
        trainer = make_trainer(
            "PromptKD", output=tmp_path / "x", TRAINER__PROMPTKD__TEACHER="", **options
        )
        trainer.load_model(str(tmp_path / "run"), epoch=2)
        assert torch.equal(trainer.method.text_features(), whole.text_features()[rows])


def test_what_it_sees_of_base_classes_alone(make_trainer):
    assert (
        "images_of_new_classes"
        not in make_trainer("PromptKD", DATASET__SUBSAMPLE_CLASSES="base").seen()
    )


def test_public_checkpoints(make_trainer, tmp_path):
    """Convolutions, BatchNorm's means; the texts are the teacher's."""
    trainer = make_trainer("PromptKD")
    shapes = {f"conv1.{i}.weight": (32, 32, 1, 1) for i in (0, 3)}
    shapes |= {f"conv1.{i}.bias": (32,) for i in (0, 1, 3)} | {"conv1.1.weight": (32,)}
    state = {f"VPT_image_trans.{name}": torch.randn(shape) for name, shape in shapes.items()}
    means = {"running_mean": torch.randn(32), "running_var": torch.rand(32) + 1}
    means["num_batches_tracked"] = torch.tensor(7)
    state |= {f"VPT_image_trans.conv1.1.{name}": value for name, value in means.items()}
    state["image_encoder.VPT"] = torch.randn(4, 64)
    for i in (1, 2):
        state[f"image_encoder.transformer.resblocks.{i}.VPT_shallow"] = torch.randn(4, 64)
    folder = tmp_path / "public" / "VLPromptLearner"
    folder.mkdir(parents=True)
    torch.save({"state_dict": state, "epoch": 20}, folder / "model.pth.tar-20")
    trainer.load_model(str(tmp_path / "public"), epoch=20)
    norm = trainer.method.projector.conv1[1]
    assert torch.equal(norm.running_var, means["running_var"]) and norm.num_batches_tracked == 7
    weight = state["VPT_image_trans.conv1.3.weight"][:, :, 0, 0]
    assert torch.equal(trainer.method.projector.conv1[3].weight, weight)
    assert 0 <= trainer.test() <= 100


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"TRAINER__PROMPTKD__TEACHER": ""}, "TEACHER is empty"),
        ({"TRAINER__PROMPTKD__TEACHER_DIM": 16}, r"shape \(5, 32\), \(5, 16\) are wanted"),
    ],
)
def test_mistakes(make_trainer, options, message):
    with pytest.raises(UserError, match=message):
        make_trainer("PromptKD", **options).train()
