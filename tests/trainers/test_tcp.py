"""TCP: which templates it reads where, and a class's own tokens in its text tower."""

import pytest
import torch
import torch.nn.functional as F

import datasets  # noqa: F401 - registers the data sets
from clip.clip import load_model
from clip.prompting import Encoders
from dassl.data.datasets import DATASET_REGISTRY
from dassl.utils import UserError
from tests.trainers.test_against_equations import Oracle
from trainers.tcp import ClassAwareContext, TCPMethod
from tuning.method import Classes

A = "a photo of a {}."
# What the released code has for each data set: of h, and around V (X: one of its vectors).
TEMPLATES = {
    "OxfordPets": ("a photo of a {}, a type of pet.", "X X X X {}, a type of pet."),
    "OxfordFlowers": ("a photo of a {}, a type of flower.", "X X X X {}, a type of flower."),
    "FGVCAircraft": ("a photo of an aircraft {}.", "X X X X {}, a type of aircraft."),
    "DescribableTextures": ("a photo of a {}, a type of texture.", "X X X X {} texture."),
    "EuroSAT": ("a centered satellite photo of {}.", "X X X X {}."),
    "StanfordCars": (A, "X X X X {}, a type of car"),
    "Food101": ("a photo of a {}, a type of food.", "X X X X {}, a type of food."),
    "SUN397": (A, "X X X X {}."),
    "Caltech101": (A, "X X X X {}."),
    "UCF101": ("a photo of a person doing {}.", "X X X X person doing {}."),
    **{f"ImageNet{kind}": (A, "X X X X {}.") for kind in ("", "V2", "Sketch", "A", "R")},
}


@pytest.mark.parametrize("dataset", TEMPLATES)
def test_both_templates_of_every_data_set(make_trainer, dataset):
    trainer = make_trainer("TCP")
    of_names, around = TEMPLATES[dataset]
    reader = DATASET_REGISTRY.get(dataset)
    template = trainer.template_of(trainer.cfg, reader)
    assert template == of_names
    names = ["ant", "brown_bear"]
    classes = Classes(names, names, template, other_templates=reader.other_templates)
    encoders = trainer.method.encoders
    method = TCPMethod.from_cfg(trainer.cfg, encoders, classes)
    ids = torch.where(method.layout.slots >= 0, -1, method.layout.tokens)
    for row, end, name in zip(ids.tolist(), method.layout.eot.tolist(), names, strict=True):
        text = around.replace("{}", name.replace("_", " "))
        expected = [-1] * 4 + encoders.text.token_ids(text.replace("X X X X ", ""))
        assert row[1:end] == expected


def test_a_template_that_is_asked_for_stands_for_both(make_trainer, monkeypatch):
    reader = DATASET_REGISTRY.get("ImageFolder")
    monkeypatch.setattr(reader, "other_templates", {"tcp": "{} a.", "tcp_context": "b {} c"})
    trainer = make_trainer("TCP")
    assert (trainer.method.classes.template, trainer.method.tail) == ("{} a.", " c")
    assert trainer.identity["data"]["template"] == "{} a.; b {} c"
    asked = make_trainer("TCP", DATASET__TEMPLATE="one two three four five {}!")
    assert (asked.method.classes.template, asked.method.tail) == (asked.cfg.DATASET.TEMPLATE, "!")
    assert list(asked.method.words) == asked.method.encoders.text.token_ids("five")


def test_formulas_in_double_precision(make_trainer, backbone):
    trainer = make_trainer("TCP")
    exact = load_model(trainer.cfg.MODEL.BACKBONE.NAME)[0].double()
    method = trainer.build_method(trainer.cfg, Encoders(exact), trainer.method.classes).double()
    names = ["ant", "brown bear", "cat", "desert fox", "eel"]
    batch = next(iter(trainer.train_loader_x))
    oracle = Oracle(backbone, batch["img"].double(), batch["label"])
    clip = oracle.clip.double()
    h = F.normalize(oracle.text(names, clip.token_embedding(torch.tensor([320, 1125, 539, 320]))))
    w1, b1, w2, b2 = (p.detach() for p in method.context.meta_net.parameters())
    hidden = h @ w1.t() + b1
    t = ((hidden * torch.sigmoid(1.702 * hidden)) @ w2.t() + b2).unflatten(-1, (4, 64))

    # The tower up to block 2, T in place, and on.
    blocks = clip.transformer.resblocks
    hook = blocks[2].register_forward_pre_hook(
        lambda block, x: (torch.cat([x[0][:1], t.transpose(0, 1), x[0][5:]]),)
    )
    e = F.normalize(oracle.text(names, method.context.ctx.detach()))
    hook.remove()
    f = F.normalize(oracle.image(oracle.images))
    ce = F.cross_entropy(clip.logit_scale.exp() * f @ e.t(), oracle.labels)
    with torch.no_grad():
        losses = method.losses(method.features(oracle.images), oracle.labels)
    torch.testing.assert_close(losses["itm"], ce, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(losses["kg"], 8 * (1 - (e * h).sum(-1).mean()), rtol=1e-9, atol=0)


def test_numbers_on_vit_b16():
    context = ClassAwareContext(torch.zeros(4, 512), 512)
    assert sum(p.numel() for p in context.parameters()) == 331_904


def test_what_has_no_effect_is_said_and_what_cannot_be_is_refused(make_trainer, capsys):
    make_trainer("TCP", TRAINER__TCP__LAYER=3, TRAINER__COOP__W=1.0)
    said = capsys.readouterr().out
    assert "TRAINER.TCP.LAYER is 3, and the text tower has layers 0 to 2" in said
    assert "TRAINER.COOP.W has no effect" in said
    with pytest.raises(UserError, match="one context for all classes"):
        make_trainer("TCP", TRAINER__COOP__CSC=True)
