"""Sentences of each class's own: what is read, what is refused, what methods make of them."""

import json

import pytest
import torch
import torch.nn.functional as F

import train
from dassl.engine import TRAINER_REGISTRY
from dassl.utils import UserError
from experiments import export_command
from tests.conftest import CLASSES
from tests.registered import every_trainer
from tuning.exported import ExportedModel
from tuning.method import Classes
from tuning.naming import is_wrapped
from tuning.run import open_run
from tuning.sentences import KEY, read_sentences, with_sentences

NAMES = [name.replace("_", " ") for name in CLASSES]
# Class c has 1 + c % 3 sentences.
OWN = {
    n: [f"A {n} number {i}, seen far away." for i in range(1 + c % 3)] for c, n in enumerate(NAMES)
}
OPTION = "DATASET__SENTENCES"


@pytest.fixture
def own(tmp_path):
    return written(tmp_path / "own.json", OWN)


def written(path, content) -> str:
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return str(path)


def named(path) -> dict:
    """The option alone: tests/conftest.py names a file by CoPrompt's key."""
    return {OPTION: path, "TRAINER__CoPrompt__SENTENCES": ""}


def mean(encoders, sentences, normalized=True) -> torch.Tensor:
    """(C,D), class by class and sentence by sentence."""
    rows = []
    for each in sentences:
        features = [encoders.text.encode([sentence])[0].float() for sentence in each]
        features = [f / f.norm() for f in features] if normalized else features
        rows.append(sum(features) / len(features))
    return torch.stack(rows)


def batch_of(trainer):
    inputs = trainer.step_inputs(next(iter(trainer.train_loader_x)))
    return inputs["image"], inputs["label"]


# The file.


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "not valid JSON"),
        ("[]", "an object of keys and values"),
        ('{"ant": "An ant."}', "'ant' must be a list"),
        ('{"ant": [1]}', "'ant' must be a list"),
        ('{"ant": []}', "'ant' has no sentence"),
        ('{"ant": ["An ant.", " "]}', "'ant' has an empty sentence"),
        ('{"ant": ["An ant."], "ant": ["Two."]}', "the key 'ant' is there twice"),
        ('{"a b": ["One."], "a_b": ["Two."]}', "'a_b' is there twice"),
    ],
)
def test_files_that_are_none(tmp_path, text, said):
    with pytest.raises(UserError, match=f"{KEY}: .*own.json.*{said}"):
        read_sentences(written(tmp_path / "own.json", text))
    with pytest.raises(UserError, match=f"{KEY}: no such file"):
        read_sentences(str(tmp_path / "nowhere.json"))


def test_as_windows_programs_write_it(tmp_path):
    content = json.dumps({"brown_bear": ["Ein Bär."]}, ensure_ascii=False)
    for encoding in ("utf-8", "utf-8-sig", "utf-16"):
        (tmp_path / "own.json").write_bytes(content.encode(encoding))
        assert read_sentences(str(tmp_path / "own.json")) == {"brown bear": ["Ein Bär."]}


def test_names_with_underscores_and_places_for_them(tmp_path):
    path = written(tmp_path / "own.json", {"desert_fox": ["a {}, a kind of fox.", "A {0}."]})
    method = type("Method", (), {"sentences_for": "features"})
    for name in ("desert_fox", "desert fox"):
        found = with_sentences(Classes([name], ["k"]), path, method).described
        assert found == {"k": ["a desert fox, a kind of fox.", "A {0}."]}


# Before training.


def test_a_class_that_isnt_there(make_trainer, tmp_path, capsys):
    few = {**{name: OWN[name] for name in NAMES[:3]}, "Desert Foxes": ["One."]}
    few = written(tmp_path / "own.json", few)
    said = (
        f"{KEY}: .*own.json has no sentences of 2 of 5 classes: 'desert fox', 'eel'.*Desert Foxes"
    )
    with pytest.raises(UserError, match=said):
        make_trainer("ZeroshotCLIP", **named(few))
    for name in ("KgCoOp", "PromptSRC", "LASP", "CoPrompt", "DePT_KgCoOp"):
        trainer = make_trainer(name, **named(few))  # to be tested it needs none
        with pytest.raises(UserError, match=said):
            trainer.train()
    # A run of the base classes needs the others only where it takes in their names.
    base = {OPTION: few, "DATASET__SUBSAMPLE_CLASSES": "base", "OPTIM__MAX_EPOCH": 1}
    make_trainer("KgCoOp", **base).train()
    trainer = make_trainer("LASP", TRAINER__LASP__NAMES="all", **base)
    with pytest.raises(UserError, match="no sentences of 2 classes whose names are taken in"):
        trainer.train()


def test_a_sentence_that_is_too_long(make_trainer, tmp_path):
    long = written(tmp_path / "own.json", {**OWN, "cat": ["cat " * 76]})
    for name in ("KgCoOp", "CoPrompt", "ZeroshotCLIP"):
        with pytest.raises(UserError, match="has 78 tokens, the text tower takes 77: shorten 'cat"):
            make_trainer(name, **named(long)).train()


# What methods make of it.


def test_zero_shot_is_the_mean_of_normalized_features(make_trainer, own, capsys):
    for name in ("ZeroshotCLIP", "ZeroshotCLIP2"):
        trainer = make_trainer(name, **{OPTION: own})
        method = trainer.method.eval()
        text = mean(method.encoders, OWN.values())
        torch.testing.assert_close(method.encode_text(), text, rtol=1e-4, atol=1e-5)
        image, _ = batch_of(trainer)
        with torch.no_grad():
            features = F.normalize(method.encoders.image(image), dim=-1)
            z = method.encoders.temperature * features @ F.normalize(text, dim=-1).t()
            torch.testing.assert_close(trainer.model_inference(image), z, rtol=1e-3, atol=1e-3)
    assert "Sentences of a class: 1 to 3" in capsys.readouterr().out


def test_kgcoop_stays_near_their_mean(make_trainer, own):
    method = make_trainer("KgCoOp", **{OPTION: own}).method
    expected = F.normalize(mean(method.encoders, OWN.values()), dim=-1)
    torch.testing.assert_close(method.frozen_text, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["PromptSRC", "ProMetaR"])
def test_promptsrc_takes_the_mean_of_features_as_they_are(make_trainer, own, name):
    method = make_trainer(name, **{OPTION: own}).method
    expected = mean(method.encoders, OWN.values(), normalized=False)
    torch.testing.assert_close(
        method.frozen_text, F.normalize(expected, dim=-1), rtol=1e-4, atol=1e-5
    )
    normalized = F.normalize(mean(method.encoders, OWN.values()), dim=-1)
    assert not torch.allclose(method.frozen_text, normalized, atol=1e-5)


@pytest.mark.parametrize("groups", [1, 2])
def test_lasp_recognizes_each_classs_own(make_trainer, tmp_path, groups):
    """The mean over classes of the mean over their sentences; the p-th is group p mod K's."""
    sentences = [[f"A {n} number {i}." for i in range(2 + c)] for c, n in enumerate(NAMES)]
    path = written(tmp_path / "own.json", dict(zip(NAMES, sentences, strict=True)))
    trainer = make_trainer(
        "LASP",
        **{OPTION: path},
        TRAINER__LASP__GROUPS=groups,
        TRAINER__LASP__LASP_LOSS_WEIGHT=1.0,
    )
    method = trainer.method.train()
    image, label = batch_of(trainer)
    noise = method.drawn(torch.Generator().manual_seed(0), 1.0)["noise"]
    assert noise.shape == (6, 5, 32)
    noise = 0.3 * torch.randn(6, 5, 32)
    with torch.no_grad():
        features = method.features(image, noise=noise)
        losses = method.losses(features, label)
        expected = []
        for group in range(groups):
            e = F.normalize(features.more["learned"][group], dim=-1)
            of_classes = []
            for c, each in enumerate(sentences):
                ce = []
                for p in range(group, len(each), groups):
                    h = F.normalize(method.encoders.text.encode([each[p]])[0], dim=-1) + noise[p, c]
                    z = method.encoders.temperature * e @ h
                    ce.append(F.cross_entropy(z, torch.tensor(c)))
                of_classes.append(sum(ce) / len(ce))
            expected.append(sum(of_classes) / len(of_classes))
    mean_of_groups = sum(expected) / groups
    torch.testing.assert_close(losses["text"], mean_of_groups, rtol=1e-4, atol=1e-4)


def test_lasps_groups_need_sentences_enough(make_trainer, own):
    trainer = make_trainer("LASP", **{OPTION: own, "TRAINER__LASP__GROUPS": 2})
    with pytest.raises(UserError, match="GROUPS is 2, and there are 1 sentences of a class"):
        trainer.train()


def test_lasps_templates_as_sentences_give_its_own_loss(make_trainer, tmp_path):
    templates = ["a photo of a {}.", "itap of a {}."]
    path = written(tmp_path / "own.json", dict.fromkeys(NAMES, templates))
    losses = []
    for options in ({"TRAINER__LASP__LASP_PROMPTS": templates}, {OPTION: path}):
        trainer = make_trainer("LASP", **options)
        method = trainer.method.train()
        image, label = batch_of(trainer)
        with torch.no_grad():
            losses.append(method.losses(method.features(image), label)["text"])
    torch.testing.assert_close(*losses, rtol=1e-5, atol=1e-5)


def test_coprompts_own_name_for_the_file(make_trainer, own, tmp_path):
    other = written(tmp_path / "other.json", OWN)
    trainer = make_trainer("CoPrompt", TRAINER__CoPrompt__SENTENCES=own)
    assert own == trainer.cfg.DATASET.SENTENCES and not trainer.cfg.TRAINER.CoPrompt.SENTENCES
    assert trainer.method.sentences == list(OWN.values())
    with pytest.raises(UserError, match="give one"):
        make_trainer("CoPrompt", **{OPTION: other}, TRAINER__CoPrompt__SENTENCES=own)


def test_others_say_that_they_take_none(command, own, tmp_path, capsys):
    train.main(command("CoOp", OPTIM__MAX_EPOCH=1, **{OPTION: own}))
    assert f"CoOp takes no sentences of classes: {KEY} isn't read" in capsys.readouterr().out
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert KEY not in result["identity"]["files"] and result["sees"] == []


def test_those_that_take_them():
    """In docs/datasets.md; each is tested above, or takes what one of those takes."""
    takes = {
        name: method.sentences_for
        for name in every_trainer()
        if (method := getattr(TRAINER_REGISTRY.get(name), "method_class", None)) is not None
        and not is_wrapped(name)
        and method.sentences_for
    }
    of_promptsrc = ["PromptSRC", "ProMetaR"]
    around = ["DPC_KgCoOp", "DPC_PromptSRC"]
    training = ["KgCoOp", "CaPT_KgCoOp", "LASP", "CoPrompt", *of_promptsrc, *around]
    expected = dict.fromkeys(training, "training")
    assert takes == expected | dict.fromkeys(["ZeroshotCLIP", "ZeroshotCLIP2"], "features")


# What is recorded.


def test_a_run_records_the_file_and_is_marked(command, own, tmp_path):
    words = command(
        "DePT_KgCoOp", OPTIM__MAX_EPOCH=1, DATASET__SUBSAMPLE_CLASSES="base", **{OPTION: own}
    )
    train.main(words)
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert len(result["identity"]["files"][KEY]) == 64
    assert result["sees"] == ["language_model_text"]
    written(tmp_path / "own.json", {**OWN, "ant": ["Another ant."]})
    with pytest.raises(UserError, match=f"another file for {KEY}"):
        train.main(words)
    # Tests, predictions and exports read what was trained, not the file.
    (tmp_path / "own.json").unlink()
    tested = ("--eval-only", "--model-dir", str(tmp_path / "run"))
    new = command("DePT_KgCoOp", *tested, output=tmp_path / "new", DATASET__SUBSAMPLE_CLASSES="new")
    train.main(new)
    result = json.loads((tmp_path / "new" / "result.json").read_text())
    assert result["sees"] == ["language_model_text"]
    assert KEY not in result["identity"]["files"]
    assert open_run(tmp_path / "run").logits(torch.zeros(1, 3, 32, 32), ["a", "b"]).shape == (1, 2)


def test_what_is_tested_with_them_is_deployed_with_them(command, own, tmp_path):
    train.main(command("ZeroshotCLIP", **{OPTION: own}))
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert KEY in result["identity"]["files"] and result["sees"] == ["language_model_text"]
    run, image = open_run(tmp_path / "run"), torch.randn(2, 3, 32, 32)
    logits = run.logits(image)
    export_command.main([str(tmp_path / "run"), "--output", str(tmp_path / "model")])
    with pytest.raises(UserError, match="no sentences of 1 of 2 classes: 'unicorn'"):
        run.method(["ant", "unicorn"])
    written(tmp_path / "own.json", {**OWN, "ant": ["Another ant."]})
    with pytest.raises(UserError, match="another file than when"):
        open_run(tmp_path / "run").logits(image)
    (tmp_path / "own.json").unlink()
    assert torch.equal(ExportedModel(tmp_path / "model").run.logits(image), logits)
    assert str(tmp_path) not in (tmp_path / "model" / "config.yaml").read_text()
