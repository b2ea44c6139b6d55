"""LASP's losses by hand, its noise, its clipping, its LayerNorms."""

import pytest
import torch
import torch.nn.functional as F

from dassl.utils import UserError
from trainers.lasp import TEMPLATES
from tuning.method import unit

TWO = ["itap of a {}.", "{} texture."]
THREE = [*TWO, "art of the {}."]


@pytest.fixture
def lasp(make_trainer):
    def build(**options):
        base = {"DATASET__SUBSAMPLE_CLASSES": options.pop("classes", "base")}
        options = {f"TRAINER__LASP__{key}": value for key, value in options.items()}
        return make_trainer("LASP", **base, **options)

    return build


def batch_of(trainer):
    return trainer.parse_batch_train(next(iter(trainer.train_loader_x)))


def text_to_text(method, learned, names, templates, noise=0):
    """mean over p and c of −log softmax_i(τ ê_i · h_pc)[i = c], entry by entry."""
    tau, total = method.encoders.temperature, []
    for p, template in enumerate(templates):
        h = unit(method.encoders.text.encode([template.format(n) for n in names]))
        h = h + (noise[p] if torch.is_tensor(noise) else 0)
        for c in range(len(names)):
            total.append(-(tau * unit(learned) @ h[c]).log_softmax(0)[c])
    return torch.stack(total).mean()


def move(method):
    with torch.no_grad():
        for parameter in method.trained().values():
            parameter += 0.05 * torch.randn_like(parameter)


BASE = ["ant", "brown bear", "cat"]
ALL = [*BASE, "desert fox", "eel"]


def test_it_starts_as_the_hand_written_prompt(lasp):
    for options in ({}, {"GROUPS": 3}):
        trainer = lasp(**options)
        method = trainer.method.train()
        image, label = batch_of(trainer)
        hand = unit(method.encoders.text.encode([f"a photo of a {n}." for n in BASE]))
        with torch.no_grad():
            z = method.encoders.temperature * unit(method.encoders.image(image)) @ hand.t()
            losses = method.losses(method.features(image), label)
        torch.testing.assert_close(losses["itm"], F.cross_entropy(z, label), rtol=1e-4, atol=1e-5)
        assert losses["text"] > 0


@pytest.mark.parametrize("names,seen", [("base", BASE), ("all", ALL)])
def test_losses(lasp, names, seen):
    trainer = lasp(NAMES=names, LASP_PROMPTS=TWO, LASP_LOSS_WEIGHT=3.0)
    method = trainer.method.train()
    move(method)
    image, label = batch_of(trainer)
    noise = 0.3 * torch.randn(2, len(seen), 32)
    with torch.no_grad():
        features = method.features(image, noise=noise)
        losses = method.losses(features, label)
        context = method.context
        layout = method.encoders.text.layout(seen, 4)
        learned = method.encoders.text(layout, context.ctx) + context.w
        expected = 3 * text_to_text(method, learned, seen, TWO, noise)
        quiet = method.losses(method.features(image), label)["text"]
        torch.testing.assert_close(
            quiet, 3 * text_to_text(method, learned, seen, TWO), rtol=1e-4, atol=1e-4
        )
    torch.testing.assert_close(losses["text"], expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(features.text, learned[:3])
    z = method.encoders.temperature * unit(features.image) @ unit(learned[:3]).t()
    torch.testing.assert_close(losses["itm"], F.cross_entropy(z, label), rtol=1e-4, atol=1e-4)
    assert not torch.isclose(quiet, expected)


def test_all_names_as_negatives(make_trainer, lasp):
    options = {"DATASET__SUBSAMPLE_CLASSES": "base", "DATASET__INCLUDE_ALL_CLASSES": True}
    trainer = make_trainer("LASP", TRAINER__LASP__LASP_PROMPTS=TWO, **options)
    method = trainer.method.train()
    image, label = batch_of(trainer)
    with torch.no_grad():
        features = method.features(image)
        losses = method.losses(features, label)
        learned = method.encoders.text(method.encoders.text.layout(ALL, 4), method.context.ctx)
        z = method.encoders.temperature * unit(features.image) @ unit(learned).t()
    torch.testing.assert_close(losses["itm"], F.cross_entropy(z, label), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(  # the other loss still sees the run's own
        losses["text"], 5 * text_to_text(method, learned[:3], BASE, TWO), rtol=1e-4, atol=1e-4
    )
    assert method.eval().logits(method.features(image)).shape[1] == 3


def test_groups(lasp):
    """Group g has templates g, g + K, …; a class's score is the mean of its groups' cosines."""
    trainer = lasp(GROUPS=2, LASP_PROMPTS=THREE, LASP_LOSS_WEIGHT=1.0, CTX_INIT="", N_CTX=2)
    method = trainer.method.train()
    image, label = batch_of(trainer)
    contexts = method.context.ctx.detach()
    assert contexts.shape == (2, 2, 64) and not torch.equal(contexts[0], contexts[1])
    with torch.no_grad():
        features = method.features(image)
        losses = method.losses(features, label)
        each = [method.encoders.text(method.layout, ctx) for ctx in contexts]
        parts = [text_to_text(method, e, BASE, THREE[g::2]) for g, e in enumerate(each)]
        cosines = [unit(features.image) @ unit(e).t() for e in each]
        z = method.encoders.temperature * sum(cosines) / 2
        torch.testing.assert_close(losses["text"], sum(parts) / 2, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(method.logits(features), z, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(method.eval().logits(method.features(image)), z)


def test_what_can_be_turned_off(lasp):
    assert set(lasp(ENABLE_CORRECTION=False, FINETUNE_VIT_LN=False).method.trained()) == {
        "context.ctx"
    }
    assert "context.w" not in lasp(TRAIN_W=False).method.trained()
    trainer = lasp(ENABLE=False, FINETUNE_VIT_LN=False)
    assert trainer.method.image_tower_untouched
    image, label = batch_of(trainer)
    losses = trainer.method.train().losses(trainer.method.features(image), label)
    assert set(losses) == {"itm"}


def test_layer_norms_are_own_copies_at_a_tenth_of_the_rate(lasp):
    trainer = lasp()
    before = {k: v.clone() for k, v in trainer.method.encoders.state_dict().items()}
    (optimizer,) = trainer._optims.values()
    rates = {id(p): g["initial_lr"] for g in optimizer.param_groups for p in g["params"]}
    for name, parameter in trainer.method.trained().items():
        assert rates[id(parameter)] == pytest.approx(
            0.00035 if name.startswith("norms.") else 0.0035
        )
    assert len([n for n in trainer.method.trained() if n.startswith("norms.")]) == 3 * 4
    trainer.train()
    blocks = trainer.method.encoders.image.visual.transformer.resblocks
    for own, block in zip(trainer.method.norms, blocks, strict=True):
        assert not torch.equal(own.ln_1.weight, block.ln_1.weight)
    after = trainer.method.encoders.state_dict()
    assert all(torch.equal(value, after[key]) for key, value in before.items())


def views(*index):
    """A batch as far as its noise depends on it."""
    return {"img": torch.zeros(len(index), 3, 32, 32), "index": torch.tensor(index)}


def test_noise(lasp):
    """On about half of the steps; the same for the same seed, epoch and images."""
    trainer = lasp(LASP_PROMPTS=TWO, NAMES="all")
    trainer.epoch = 0
    steps = [trainer.known_features(views(i, 5))["noise"] for i in range(60)]
    assert steps[0].shape == (2, 5, 32)
    noisy = [noise for noise in steps if noise.any()]
    assert 15 < len(noisy) < 45
    assert torch.stack(noisy).std().item() == pytest.approx(0.05, rel=0.05)
    again = trainer.known_features(views(7, 5))["noise"]
    assert torch.equal(again, steps[7])
    trainer.epoch = 1
    others = [trainer.known_features(views(i, 5))["noise"] for i in range(60)]
    assert not torch.equal(torch.stack(others), torch.stack(steps))
    assert "noise" not in lasp(NOISE=0.0).known_features(views(7, 5))


def test_gradients_are_clipped_over_all_that_is_trained(lasp):
    for limit in (0.0, 0.5):
        trainer = lasp(CLIP_NORM=limit, NOISE=0.0)
        trainer.before_train()
        trainer.epoch, trainer.batch_idx, trainer.num_batches = 0, 0, 2
        trainer.forward_backward(next(iter(trainer.train_loader_x)))
        squares = [p.grad.square().sum() for p in trainer.method.trained().values()]
        norm = sum(squares).sqrt().item()
        if limit:
            assert norm == pytest.approx(limit, rel=1e-4)
        else:
            assert norm > 1


def test_templates(lasp):
    assert len(TEMPLATES) == 35 and len(set(TEMPLATES)) == 34
    with pytest.raises(UserError, match="needs one"):
        lasp(LASP_PROMPTS=["a photo."])
    with pytest.raises(UserError, match="each group needs one"):
        lasp(LASP_PROMPTS=TWO, GROUPS=3)
    with pytest.raises(UserError, match="'every'"):
        lasp(NAMES="every")
