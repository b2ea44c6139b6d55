"""CoPrompt's sentences: which are read, which are drawn, and what is said where there are none.

Its numbers are those of its public code: tests/originals.
"""

import json

import pytest
import torch

import train
from clip.open_clip_parts import imagenet_templates
from dassl.utils import UserError
from tuning.method import unit

KEY = "TRAINER__CoPrompt__SENTENCES"


@pytest.fixture
def sentences(tmp_path):
    """A file of other numbers of sentences for each class."""
    names = ["ant", "brown bear", "cat", "desert fox", "eel", "unicorn"]
    found = {n: [f"Sentence {i} of the {n}." for i in range(1 + c)] for c, n in enumerate(names)}
    path = tmp_path / "sentences.json"
    path.write_text(json.dumps(found))
    return path, found


def features(trainer, place):
    batch = trainer.step_inputs(next(iter(trainer.train_loader_x)))
    batch.pop("label")
    return trainer.method.train().features(**{**batch, "place": torch.tensor(place)})


def test_each_class_has_the_sentence_drawn(make_trainer, sentences):
    path, found = sentences
    trainer = make_trainer("CoPrompt", **{KEY: path})
    names = [name.replace("_", " ") for name in trainer.method.classes.names]
    for place in (0.0, 0.5, 0.99999999):
        chosen = [found[name][int(place * len(found[name]))] for name in names]
        expected = unit(trainer.method.encoders.text.encode(chosen))
        seen = features(trainer, place).more["sentences"]
        torch.testing.assert_close(seen, expected, rtol=1e-4, atol=1e-5)
    assert features(trainer, 1.0).more["sentences"].isfinite().all()  # fp32's u may be rounded up


def test_the_second_view_alone_is_compared_with(make_trainer, sentences):
    trainer = make_trainer("CoPrompt", **{KEY: sentences[0]})
    batch = trainer.step_inputs(next(iter(trainer.train_loader_x)))
    batch.pop("label")
    batch["other_views"] = torch.randn_like(batch["other_views"])
    seen = trainer.method.train().features(**batch)
    frozen = trainer.method.encoders.image(batch["other_views"][0])
    torch.testing.assert_close(seen.more["frozen_image"], frozen)


def test_templates_are_another_method(make_trainer):
    trainer = make_trainer("CoPromptTemplates")
    texts = [imagenet_templates()[40].replace("{}", n) for n in ("ant", "brown bear", "cat")]
    seen = features(trainer, 40.5 / 80).more["sentences"][:3]
    expected = unit(trainer.method.encoders.text.encode(texts))
    torch.testing.assert_close(seen, expected, rtol=1e-4, atol=1e-5)
    assert "language_model_text" not in trainer.seen()
    assert "language_model_text" in make_trainer("CoPrompt").seen()


def test_without_sentences_it_is_tested_but_not_trained(make_trainer, sentences):
    for file in ("", sentences[0].parent / "few.json"):
        if file:
            file.write_text('{"ant": ["An ant."]}')
        trainer = make_trainer("CoPrompt", **{KEY: file})
        assert 0 <= trainer.test() <= 100
        said = "has no sentences of 4 of 5" if file else "must name a JSON file .* each of the 5 cl"
        with pytest.raises(UserError, match=f"DATASET.SENTENCES.* {said}"):
            trainer.train()


def test_a_run_is_another_with_other_sentences(command, sentences, tmp_path, capsys):
    path, found = sentences
    words = command("CoPrompt", OPTIM__MAX_EPOCH=1, **{KEY: path})
    train.main(words)
    identity = json.loads((tmp_path / "run" / "result.json").read_text())["identity"]
    assert "DATASET.SENTENCES" in identity["files"]
    path.write_text(json.dumps({**found, "ant": ["Another ant."]}))
    with pytest.raises(UserError, match="SENTENCES"):
        train.main(words)
