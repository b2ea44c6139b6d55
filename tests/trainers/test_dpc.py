"""DPC: which prompt is tested, what joins a batch, its loss, stage 1, what can be saved and loaded.

What all methods owe: test_contract.py, test_interrupted.py. Public code's numbers: tests/originals.
"""

import json
import os
import signal

import pytest
import torch

import train
from dassl.data import DatasetWrapper
from dassl.engine import TRAINER_REGISTRY
from dassl.utils import Terminated, UserError
from experiments.results.scores import load_scores
from tests.conftest import CLASSES
from trainers.dpc import negatives
from tuning import trainer as base
from tuning.method import unit
from tuning.run import open_run

pytestmark = pytest.mark.usefixtures("heeded_signals")

NAMES = ["DPC_CoOp", "DPC_MaPLe"]


def moved(method, by=0.1):
    """P′ away from P."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for p in method.trained().values():
            p += by * torch.randn(p.shape, generator=generator)
    return method


@pytest.fixture
def images():
    return torch.randn(6, 3, 32, 32, generator=torch.Generator().manual_seed(1))


def logits(method, images):
    with torch.no_grad():
        return method.logits(method.features(images))


@pytest.mark.parametrize("name", [*NAMES, "DPC_KgCoOp", "DPC_PromptSRC", "DePT_DPC_MaPLe"])
def test_the_mixing_law(make_trainer, images, name):
    """Of parameters; 1 is P′ itself, 0 P itself, and what is trained is P′."""
    options = {"TRAINER__DPC__WEIGHT": 0.3, "TRAINER__DPC__WEIGHT_FOR_NEW": 0.8}
    trainer = make_trainer(name, **options)
    whole = trainer.method
    dpc = getattr(whole, "method", whole) if name.startswith("DePT_") else whole
    moved(dpc)
    bare = make_trainer(trainer.first.__name__).method.eval()
    own, tuned = dpc.trained_state(), dpc.tuned.trained_state()

    def expected(weight):
        mixed = {key: weight * own[key] + (1 - weight) * tuned[key] for key in own}
        bare.load_trained(mixed, bare.classes.keys)
        return logits(bare, images)

    assert torch.equal(logits(dpc.eval(), images), expected(0.3))
    moved(dpc, 0.01)  # as a step does
    own = dpc.trained_state()
    assert torch.equal(logits(dpc, images), expected(0.3))
    dpc.weight = 1
    assert torch.equal(logits(dpc, images), expected(1.0)) and dpc.prompted() is dpc.method
    dpc.weight = 0
    assert torch.equal(logits(dpc, images), expected(0.0)) and dpc.prompted() is dpc.tuned
    dpc.load_trained(own, ["others"])
    assert torch.equal(logits(dpc, images), expected(0.8))
    assert dpc.train().prompted() is dpc.method
    assert not any(p.requires_grad for p in dpc.tuned.parameters())


def test_the_loss_by_hand(make_trainer):
    trainer = make_trainer("DPC_CoOp")
    method = moved(trainer.method).train()
    image, label = torch.randn(5, 32), torch.tensor([3, 0, 2, 4, 0])
    with torch.no_grad():
        features = method.features(image)
        found = method.losses(features, label)
        assert torch.equal(features.text, method.method.encode_text())
    assert set(found) == {"pairs"}
    z = method.encoders.temperature * unit(image) @ unit(features.text)[label].t()
    expected = 0.0
    for i in range(5):
        for row in (z[i], z[:, i]):
            expected -= float((row[i].exp() / row.exp().sum()).log()) / 10
    assert found["pairs"].item() == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize(
    ("name", "others"), [("DPC_KgCoOp", {"kg"}), ("DPC_PromptSRC", {"text", "image", "kl"})]
)
def test_other_losses_stay_where_they_are_asked_for(make_trainer, name, others):
    for regularize in (False, True):
        trainer = make_trainer(name, TRAINER__DPC__REGULARIZE=regularize)
        trainer.set_model_mode("train")
        batch = next(iter(trainer.training_batches()))
        assert ("frozen_image" in batch) == (regularize and name == "DPC_PromptSRC")
        inputs = trainer.step_inputs(batch)
        label = inputs.pop("label")
        losses = trainer.method.losses(trainer.method.features(**inputs), label)
        assert set(losses) == {"pairs"} | (others if regularize else set())
        assert len(inputs["image"]) == len(label) > 4
        assert all(len(value) == len(label) for value in inputs.values())


def test_negatives_by_hand():
    top = [[1, 0, 2, 3], [4, 1, 0, 5], [5, 4, 1, 0], [0, 1, 4, 5]]
    # 1 is in the batch, 2 and 3 are the first image's; 0 and 1 are labels; more are drawn.
    assert negatives(top, [0, 1, 5, 1], [7, 5, 6, 9, 8, 10, 11]) == [2, 3, 4, 7, 6, 9, 8, 10]
    assert negatives([[0, 2, 3]], [1], []) == [0, 2, 3]  # K of them
    assert negatives([[0, 2]], [0], [4, 3]) == [2, 4]
    assert negatives([[1, 0]], [0], []) == [1]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("fast", [True, False])
def test_what_joins_a_batch(make_trainer, name, fast):
    options = {"TRAINER__DPC__TOPK": 3, "DATASET__NUM_SHOTS": 4, "MODEL__FAST": fast}
    options |= {"DATALOADER__TRAIN_X__BATCH_SIZE": 2, "DATALOADER__FEATURE_CACHE": ""}
    options["INPUT__TRANSFORMS"] = "('random_resized_crop', 'random_flip', 'normalize')"
    trainer = make_trainer(name, **options)
    trainer.set_model_mode("train")
    views = trainer.train_loader_x.dataset
    seen = []
    for epoch in (0, 1):
        trainer.epoch = epoch
        trainer.begin_epoch()
        for batch in trainer.training_batches():
            inputs = trainer.step_inputs(batch)
            again = trainer.step_inputs(batch)
            assert all(torch.equal(inputs[key], again[key]) for key in inputs)
            label, number = inputs["label"], len(batch["label"])
            assert torch.equal(label[:number], batch["label"])
            further = label[number:].tolist()
            assert further and len(set(further)) == len(further)
            assert not set(further) & set(batch["label"].tolist())
            seen.append(further)
            # Each is the view, in this epoch, of one of the class's training images.
            for c, row in zip(further, inputs["image"][number:], strict=True):
                rows = [
                    views.item(i, epoch)["img"]
                    for i, item in enumerate(views.data_source)
                    if item.label == c
                ]
                if row.dim() == 1:
                    rows = list(trainer.encode_views(torch.stack(rows)))
                assert min((row - own).abs().max() for own in rows) < 1e-4
    assert len({tuple(classes) for classes in seen}) > 1


@pytest.mark.parametrize("on_error", ["skip", "fail"])
def test_a_negative_that_can_not_be_read(make_trainer, monkeypatch, on_error):
    trainer = make_trainer("DPC_MaPLe", INPUT__ON_DECODE_ERROR=on_error)
    trainer.set_model_mode("train")
    batch = next(iter(trainer.training_batches()))
    label = trainer.step_inputs(batch)["label"]
    lost = int(label[-1])
    read = DatasetWrapper.item

    def item(self, index, epoch):
        if self.data_source[index].label == lost:
            raise UserError("no picture")
        return read(self, index, epoch)

    monkeypatch.setattr(DatasetWrapper, "item", item)
    if on_error == "fail":
        with pytest.raises(UserError, match="no picture"):
            trainer.step_inputs(batch)
        return
    inputs = trainer.step_inputs(batch)
    assert inputs["label"].tolist() == label[:-1].tolist()
    assert len(inputs["image"]) == len(label) - 1


def test_the_ranks_are_those_of_the_tuned_prompt(make_trainer, images):
    trainer = make_trainer("DPC_MaPLe", TRAINER__DPC__TOPK=2)
    method = trainer.method.train()
    places = [[c] for c in range(5)]
    label = torch.tensor([0, 0, 1, 1, 1, 0])

    def chosen():
        generator = torch.Generator().manual_seed(1)
        return method.further_images(images, label, places, generator)

    found = chosen()
    moved(method, 1.0)
    assert chosen() == found and not set(found) & {0, 1}


def test_the_rate_of_the_parallel_prompt(make_trainer):
    trainer = make_trainer("DPC_CoOp", TRAINER__DPC__LR_MULT=3, OPTIM__WARMUP_EPOCH=0)
    (group,) = trainer._optims["prompt_learner"].param_groups
    assert group["lr"] == pytest.approx(3 * 0.0035)
    twin = make_trainer("DePT_DPC_CoOp", TRAINER__DPC__LR_MULT=3, OPTIM__WARMUP_EPOCH=0)
    rates = [group["lr"] for group in twin._optims["PromptLearner"].param_groups]
    assert rates == pytest.approx([3 * 0.0035, 6.5 * 0.0035])


OPTIONS = {"DATASET__SUBSAMPLE_CLASSES": "base", "DATASET__NUM_SHOTS": 4}
STAGE1 = "('OPTIM.MAX_EPOCH', 3, 'OPTIM.LR', 0.1)"


def result(folder):
    return json.loads((folder / "result.json").read_text())


@pytest.mark.parametrize("name", [*NAMES, "DePT_DPC_CoOp"])
def test_new_classes_are_tested_as_after_stage_one(command, tmp_path, name, capsys):
    """To the bit, and stage 1 is the run that X by itself makes."""
    words = command(name, TRAINER__DPC__STAGE1=STAGE1, **OPTIONS)
    train.main(words)
    bare = name.rpartition("_")[2]
    alone = {"OPTIM__MAX_EPOCH": 3, "OPTIM__LR": 0.1, **OPTIONS}
    train.main(command(bare, output=tmp_path / "alone", **alone))
    first, alone = open_run(tmp_path / "run" / "stage1"), open_run(tmp_path / "alone")
    for key, value in alone.checkpoint["state_dict"].items():
        assert torch.equal(first.checkpoint["state_dict"][key], value)
    images = torch.randn(4, 3, 32, 32)
    whole = open_run(tmp_path / "run")
    assert not torch.equal(whole.logits(images), first.logits(images))
    assert torch.equal(whole.logits(images, CLASSES[3:]), first.logits(images, CLASSES[3:]))
    # All classes at once: some of them are new.
    assert torch.equal(whole.logits(images, CLASSES), first.logits(images, CLASSES))
    capsys.readouterr()
    test = ("--eval-only", "--model-dir")
    new = {"DATASET__SUBSAMPLE_CLASSES": "new", "DATASET__NUM_SHOTS": 4}
    train.main(command(name, *test, str(tmp_path / "run"), output=tmp_path / "new", **new))
    assert (
        "The parallel prompt is left out: this run's 2 classes are new" in capsys.readouterr().out
    )
    train.main(command(bare, *test, str(tmp_path / "alone"), output=tmp_path / "new1", **new))
    assert result(tmp_path / "new")["accuracy"] == result(tmp_path / "new1")["accuracy"]


def test_the_weight_is_a_tests_own_affair(command, tmp_path, images):
    train.main(command("DPC_CoOp", **OPTIONS))
    run = open_run(tmp_path / "run")
    method = run.method()
    assert method.weight == 0.5
    run.cfg.defrost()
    run.cfg.TRAINER.DPC.WEIGHT = 0.0
    run._methods.clear()
    first = open_run(tmp_path / "run" / "stage1")
    assert torch.equal(run.logits(images), first.logits(images))


def terminated_in(monkeypatch, n, run):
    """`run`, sent SIGTERM after its n-th step."""
    step, calls = base.PromptTrainer.end_step, []

    def sends(self):
        calls.append(1)
        if len(calls) == n:
            os.kill(os.getpid(), signal.SIGTERM)
        return step(self)

    with monkeypatch.context() as patch, pytest.raises(Terminated):
        patch.setattr(base.PromptTrainer, "end_step", sends)
        run()
    assert len(calls) == n


def test_killed_in_either_stage(command, tmp_path, monkeypatch, capsys):
    """3 steps an epoch, 2 epochs of stage 1 and 3 of stage 2."""
    options = {**OPTIONS, "OPTIM__MAX_EPOCH": 3, "TRAINER__DPC__STAGE1": "('OPTIM.MAX_EPOCH', 2)"}
    train.main(command("DPC_CoOp", output=tmp_path / "whole", **options))
    words = command("DPC_CoOp", output=tmp_path / "parts", **options)
    terminated_in(monkeypatch, 4, lambda: train.main(words))  # in stage 1
    assert (tmp_path / "parts" / "stage1" / "resume.pth.tar").is_file()
    capsys.readouterr()
    terminated_in(monkeypatch, 2 + 1, lambda: train.main(words))  # and in stage 2's first epoch
    said = capsys.readouterr().out
    assert "resuming at epoch 2, batch 2" in said and "Stage 1 is complete" in said
    terminated_in(monkeypatch, 4, lambda: train.main(words))
    assert "stage 1" not in capsys.readouterr().out.lower()
    train.main(words)
    whole, parts = (open_run(tmp_path / part).checkpoint for part in ("whole", "parts"))
    for entry in ("state_dict", "prepared"):
        assert set(whole[entry]) == set(parts[entry])
        for key, value in whole[entry].items():
            assert torch.equal(parts[entry][key], value), key
    assert set(whole["prepared"]) == {"tuned.context.ctx"}
    same = [result(tmp_path / part)["accuracy"] for part in ("whole", "parts")]
    assert same[0] == same[1]
    # Each stage has a log of its own.
    logs = [(tmp_path / "parts" / part / "log.txt").read_text() for part in (".", "stage1")]
    assert [log.count("Finish training") for log in logs] == [1, 1]
    train.main(words)
    assert "is complete" in capsys.readouterr().out


def test_stage_one_is_no_row_of_its_own(command, tmp_path):
    train.main(command("DPC_CoOp", **OPTIONS))
    assert (tmp_path / "run" / "stage1" / "result.json").is_file()
    scores, problems = load_scores(tmp_path)
    assert [score.trainer for score in scores] == ["DPC_CoOp"] and not problems
    (score,) = load_scores(tmp_path / "run" / "stage1")[0]  # but if asked for
    assert score.trainer == "CoOp"


def test_stage_one_that_is_complete_is_taken(command, tmp_path, monkeypatch, capsys):
    words = command("DPC_CoOp", **OPTIONS)
    terminated_in(monkeypatch, 6 + 1, lambda: train.main(words))
    (tmp_path / "run" / "resume.pth.tar").unlink()  # as if killed before its first record
    train.main(words)
    assert "Stage 1, CoOp, is complete" in capsys.readouterr().out


def test_stage_one_is_a_run_given(command, tmp_path, capsys, images):
    train.main(command("CoOp", output=tmp_path / "stage", **OPTIONS))
    (file,) = (tmp_path / "stage").glob("*/model.pth.tar-2")
    options = {**OPTIONS, "MODEL__INIT_WEIGHTS": str(file)}
    train.main(command("DPC_CoOp", **options))
    assert not (tmp_path / "run" / "stage1").exists()
    assert "no stage 1" in capsys.readouterr().out
    new = [open_run(tmp_path / part).logits(images, CLASSES[3:]) for part in ("run", "stage")]
    assert torch.equal(*new)
    # A run of DPC is none of stage 1, nor the other way round.
    (own,) = (tmp_path / "run").glob("*/model.pth.tar-2")
    with pytest.raises(
        UserError, match="is of a run of DPC_CoOp; DPC_CoOp starts from one of CoOp"
    ):
        train.main(command("DPC_CoOp", output=tmp_path / "x", MODEL__INIT_WEIGHTS=str(own)))
    test = ("--eval-only", "--model-dir")
    with pytest.raises(UserError, match="has no tuned prompt"):
        train.main(command("DPC_CoOp", *test, str(tmp_path / "stage"), output=tmp_path / "y"))
    with pytest.raises(UserError, match="tuned.context.ctx beside what was trained"):
        train.main(command("CoOp", *test, str(tmp_path / "run"), output=tmp_path / "z"))


def test_public_checkpoints(make_trainer, command, tmp_path):
    """They hold the mixture alone; its stage 1 is named beside it."""
    stage = make_trainer("CoOp").method
    encoder = stage.encoders.text
    suffix = encoder.token_embedding(stage.layout.tokens[:, 1 + 4 :]).detach()
    p, m = (torch.randn(4, 64, generator=torch.Generator().manual_seed(i)) for i in (1, 2))
    for name, ctx in (("stage", p), ("public", m)):
        folder = tmp_path / name / "prompt_learner"
        folder.mkdir(parents=True)
        torch.save(
            {"state_dict": {"ctx": ctx, "token_suffix": suffix}, "epoch": 2},
            folder / "model.pth.tar-2",
        )
    options = {"TRAINER__DPC__WEIGHT": 0.2}
    with pytest.raises(UserError, match="mixture of both prompts alone"):
        make_trainer("DPC_CoOp", **options).load_model(str(tmp_path / "public"), epoch=2)
    options["MODEL__INIT_WEIGHTS"] = str(tmp_path / "stage" / "prompt_learner" / "model.pth.tar-2")
    trainer = make_trainer("DPC_CoOp", **options)
    trainer.load_model(str(tmp_path / "public"), epoch=2)
    parallel = trainer.method.trained()["context.ctx"]
    torch.testing.assert_close(parallel, (m - 0.8 * p) / 0.2)
    mixed = trainer.method.eval().prompted().trained()["context.ctx"]
    torch.testing.assert_close(mixed, m)


def test_what_dpc_can_not_be_around():
    for name, why in (
        ("DPC_VPT", "declares no prompts"),
        ("DPC_InfoPrompt", r"trains more than prompts \(critic\)"),
        ("DPC_ProMetaR", r"a way of its own to train \(own_step, drawn\)"),
        ("DPC_DePT_CoOp", "DePT goes around DPC, as DePT_DPC_CoOp"),
        ("DPC_DPC_CoOp", "unknown trainer"),
    ):
        with pytest.raises(UserError, match=why):
            TRAINER_REGISTRY.get(name)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"STAGE1": "('OPTIM.MAX_EPOCH',)"}, "pairs KEY VALUE"),
        ({"STAGE1": "('OPTIM.MAX_EPOCHS', 3)"}, "OPTIM.MAX_EPOCH"),
        ({"STAGE1": "('DATASET.NUM_SHOTS', 1)"}, "a stage has its run's"),
        ({"STAGE1": "('OUTPUT_DIR', 'x')"}, "a stage has its run's"),
        ({"TOPK": 1}, "TRAINER.DPC.TOPK"),
        ({"WEIGHT": 1.5}, "TRAINER.DPC.WEIGHT"),
    ],
)
def test_mistakes(make_trainer, options, message):
    with pytest.raises(UserError, match=message):
        make_trainer("DPC_CoOp", **{f"TRAINER__DPC__{key}": v for key, v in options.items()})


def test_several_data_sets_and_several_seeds_are_refused(make_trainer, command, further):
    with pytest.raises(UserError, match="DPC's negatives are of one data set"):
        make_trainer("DPC_CoOp", **further)
    with pytest.raises(UserError, match=r"a step of its own \(DPC.further_images\)"):
        train.main([*command("DPC_CoOp"), "--seed", "1", "2"])
