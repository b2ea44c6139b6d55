"""Class names as the text tower reads them."""

import pytest

from dassl.utils import UserError
from tuning.class_names import cut_names, say_alike
from tuning.method import Classes

LONG = "a very long name of a thing that nobody would say in one breath"


def classes(*names: str, **kwargs) -> Classes:
    return Classes(list(names), list(names), **kwargs)


def test_equal_prompts_are_named(capsys):
    say_alike(classes("Cat", "cat", "dog", "big_dog", "CAT", "big dog"))
    told = capsys.readouterr().out
    assert "apart: Cat = cat = CAT; big_dog = big dog\n" in told
    say_alike(classes("cat", "dog"))
    assert capsys.readouterr().out == ""


def test_keys_stand_with_names_that_say_less(capsys):
    say_alike(Classes(["crane", "crane"], ["n1", "n2"]))
    assert "apart: n1 (crane) = n2 (crane)" in capsys.readouterr().out


def test_names_are_cut_to_tokens(capsys):
    further = (classes(LONG),)
    cut = cut_names(classes("cat", LONG, others={"k": LONG}, further=further), 3)
    assert cut.names == ["cat", "a very long"] and cut.keys == ["cat", LONG]
    assert cut.others == {"k": "a very long"} and cut.further[0].names == ["a very long"]
    assert "1 class names are cut to 3 tokens" in capsys.readouterr().out
    assert cut_names(cut, 0) is cut
    with pytest.raises(UserError, match="NAME_TOKENS is -1"):
        cut_names(cut, -1)


def test_too_long_a_name_can_be_trained_on_when_cut(make_trainer):
    trainer = make_trainer("CoOp")
    named = classes("cat", " ".join(["word"] * 80))
    cfg = trainer.cfg.clone()
    with pytest.raises(UserError, match="NAME_TOKENS cuts it"):
        trainer.build_method(cfg, trainer.method.encoders, named)
    cfg.defrost()
    cfg.DATASET.NAME_TOKENS = 5
    method = trainer.build_method(cfg, trainer.method.encoders, named)
    assert len(method.classes.names[1].split()) == 5
