"""CaPT: its margins, what it adds to the context, dropout, and the templates it reads."""

import pytest
import torch
import torch.nn.functional as F

import datasets  # noqa: F401 - registers the data sets
from dassl.data.datasets import DATASET_REGISTRY
from dassl.utils import UserError
from trainers.capt import CaPTKgCoOpMethod, Transfer, margins
from tuning.method import Classes
from tuning.options import parse_args, setup_cfg


@pytest.mark.parametrize("use_sim", [True, False])
def test_margins_by_hand(use_sim):
    known = torch.randn(4, 8, generator=torch.Generator().manual_seed(1))
    m = margins(known, 0.3, use_sim)
    for y in range(4):
        row = [
            0.1 * (F.cosine_similarity(known[y], known[j], dim=0) if use_sim else 1.0)
            for j in range(4)
        ]
        row[y] = -sum(row[j] for j in range(4) if j != y)
        torch.testing.assert_close(m[y], torch.stack([torch.as_tensor(x) for x in row]))
    assert margins(known[:1], 0.3).item() == 0  # of one class


@pytest.mark.parametrize("trainer", ["CaPT_CoOp", "CaPT_KgCoOp"])
def test_contexts_and_loss_by_the_formulas(make_trainer, trainer):
    scale, smooth = 0.7, 0.02
    options = {"DROPOUT": 0.0, "SCALE": scale, "LOSS__SMOOTH": smooth}
    options = {f"TRAINER__UCP__{key}": value for key, value in options.items()}
    built = make_trainer(trainer, **options)
    method = built.method.train()
    inputs = built.step_inputs(next(iter(built.train_loader_x)))
    label = inputs.pop("label")
    encoders, classes = method.encoders, method.classes
    with torch.no_grad():
        known = encoders.text.encode(classes.sentences())
        down, up = method.transfer.down, method.transfer.up
        hidden = scale * known @ down.weight + down.bias
        hidden = torch.where(hidden > 0, hidden, 0.01 * hidden)
        shift = hidden @ up.weight + up.bias
        contexts = method.context.ctx + shift[:, None]
        text = encoders.text(method.layout, contexts)
        features = method.features(**inputs)
        torch.testing.assert_close(features.text, text, rtol=1e-4, atol=1e-5)
        z = encoders.temperature * F.normalize(features.image) @ F.normalize(text).t()
        torch.testing.assert_close(method.logits(features), z, rtol=1e-4, atol=1e-3)
        m = margins(known, smooth)[label]
        expected = F.cross_entropy(100 * (z / 100 - m), label)
        losses = method.losses(features, label)
    torch.testing.assert_close(losses["itm"], expected, rtol=1e-4, atol=1e-4)
    assert expected < F.cross_entropy(z, label)  # the margins ease it
    assert set(losses) == ({"itm", "kg"} if "Kg" in trainer else {"itm"})


def test_dropout_is_a_function_of_the_step(make_trainer):
    trainer = make_trainer("CaPT_CoOp", TRAINER__UCP__DROPOUT=0.5)
    batch = next(iter(trainer.train_loader_x))
    first, again = (trainer.step_inputs(batch)["kept"] for _ in range(2))
    assert torch.equal(first, again) and set(first.unique().tolist()) == {0.0, 2.0}
    trainer.epoch = 1
    assert not torch.equal(trainer.step_inputs(batch)["kept"], first)
    method = trainer.method
    with torch.no_grad():
        hidden = F.leaky_relu(method.transfer.down(method.known))
        shift = method.transfer.up(hidden * first)
        text = method.encoders.text(method.layout, method.context.ctx + shift[:, None])
        torch.testing.assert_close(method.features(batch["img"], kept=first).text, text)
    assert "kept" not in make_trainer("CaPT_CoOp", TRAINER__UCP__DROPOUT=0.0).step_inputs(batch)


def test_textures_have_a_template_for_each_purpose(make_trainer):
    trainer = make_trainer("CaPT_KgCoOp")
    reader = DATASET_REGISTRY.get("DescribableTextures")
    names = ["braided", "dotted"]
    classes = Classes(names, names, reader.template, other_templates=reader.other_templates)
    method = CaPTKgCoOpMethod.from_cfg(trainer.cfg, trainer.method.encoders, classes)
    encode = trainer.method.encoders.text.encode
    torch.testing.assert_close(method.known, encode(["braided texture.", "dotted texture."]))
    long = encode([f"a photo of a {name}, a type of texture." for name in names])
    torch.testing.assert_close(method.frozen_text, F.normalize(long))


def test_numbers_on_vit_b16():
    """With V (4,512): 33 and 66 thousand."""
    counts = [sum(p.numel() for p in Transfer(512, h, 512).parameters()) for h in (32, 64)]
    assert counts == [33_312, 66_112]


def test_names_of_the_public_code():
    def merged(*words):
        return setup_cfg(parse_args(["--trainer", "DePT_CaPT_KgCoOp", *words])).TRAINER

    found = merged(
        "TRAINER.KGCOOP.W", "1.5", "TRAINER.DEPT.CLS_WEIGHT", "0.6", "TRAINER.PREC", "fp32"
    )
    assert (found.COOP.W, found.DEPT.WEIGHT, found.UCP.PREC, found.PREC) == (1.5, 0.6, "fp32", "")
    assert merged("OPTIM.NEW_LR_MULT", "18.0").DEPT.LR_MULT == 18
    for key, value in (("MODULE", "attn"), ("TOKENIZER_MODE", "glove"), ("VERSION", "1")):
        with pytest.raises(UserError, match="only"):
            merged(f"TRAINER.UCP.{key}", value)
