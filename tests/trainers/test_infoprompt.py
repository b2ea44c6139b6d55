"""InfoPrompt and StablePT on CLIP, by the formulas at the head of their files, in fp64."""

import math

import pytest
import torch
import torch.nn.functional as F

from clip import tokenize
from clip.clip import load_model
from clip.prompting import Encoders
from dassl.utils import UserError
from trainers.infoprompt import InfoPrompt
from trainers.stablept import SoftPrompts, StablePT, contrast
from tuning.method import unit

NAMES = ["ant", "brown bear", "cat", "desert fox", "eel"]
TEMPLATE = "art of the {}."
TRAINERS = {"InfoPrompt": InfoPrompt, "StablePT": StablePT}


@pytest.fixture
def exact(make_trainer):
    """exact(name, **options) → a moved method in fp64, CLIP in fp64, a step's inputs."""

    def build(name, moved=True, **options):
        options = {f"TRAINER__{name.upper()}__{key}": value for key, value in options.items()}
        trainer = make_trainer(name, DATASET__TEMPLATE=TEMPLATE, **options)
        clip = load_model(trainer.cfg.MODEL.BACKBONE.NAME)[0].double()
        torch.manual_seed(3)
        build = TRAINERS[name].build_method
        method = build(trainer.cfg, Encoders(clip), trainer.method.classes).double().freeze()
        if moved:
            with torch.no_grad():
                for parameter in method.trained().values():
                    parameter += 0.1 * torch.randn_like(parameter)
        inputs = trainer.step_inputs(next(iter(trainer.train_loader_x)))
        inputs["image"] = torch.randn(len(inputs["label"]), 32)  # features: the tower is untouched
        floats = {k: v.double() if v.is_floating_point() else v for k, v in inputs.items()}
        return method, clip, floats

    return build


def encoded(clip, texts):
    with torch.no_grad():
        return clip.encode_text(tokenize(texts))


def with_context(clip, ctx):
    """Features of [SOS][ctx][name][.][EOT], all 77 tokens of them."""
    tokens = tokenize([f"{'X ' * len(ctx)}{name}." for name in NAMES])
    x = clip.token_embedding(tokens)
    x = torch.cat([x[:, :1], ctx.expand(5, -1, -1), x[:, 1 + len(ctx) :]], dim=1)
    x = clip.transformer((x + clip.positional_embedding).transpose(0, 1)).transpose(0, 1)
    return clip.ln_final(x)[torch.arange(5), tokens.argmax(-1)] @ clip.text_projection


def cross_entropy(clip, inputs, text):
    """Of the ITM head on the views' features (B,D)."""
    logits = clip.logit_scale.exp() * unit(inputs["image"]) @ unit(text).t()
    return F.cross_entropy(logits, inputs["label"])


def check(method, inputs, expected):
    """Losses, one by one, and the gradients of their sum."""
    inputs = dict(inputs)
    label = inputs.pop("label")
    found = method.train().losses(method.features(**inputs), label)
    assert set(found) == set(expected)
    leaves = list(method.trained().values())
    for name, value in expected.items():
        assert found[name].item() == pytest.approx(value.item(), rel=1e-10), name
    grads = torch.autograd.grad(sum(found.values()), leaves)
    for one, other in zip(grads, torch.autograd.grad(sum(expected.values()), leaves), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("words", ["a photo of a", ""])
def test_infoprompt(exact, words):
    options = {"HEAD_NEGATIVES": 3, "FEATURE_DRAWS": 2, "HEAD_WEIGHT": 0.7, "DECAY": 0.5}
    method, clip, inputs = exact("InfoPrompt", CTX_INIT=words, **options)
    ctx, a = method.context.ctx, method.critic.weight
    assert ctx.shape == (4, 64) and a.shape == (32, 64)
    share = 1 - 0.5 * 1 / 2  # the first of two epochs
    assert inputs["share"].item() == share
    table, u = clip.token_embedding.weight.detach(), ctx.mean(dim=0)
    rows = [table[method.encoders.text.token_ids(name)].mean(dim=0) for name in NAMES]
    h = sum(rows) / 5
    scores = [u @ h, *(table[i] @ h for i in inputs["tokens"].tolist())]
    head = -(torch.stack(scores) / math.sqrt(64)).log_softmax(0)[0]
    q, frozen = a @ u, unit(encoded(clip, [TEMPLATE.format(n) for n in NAMES]))
    text, of_features = with_context(clip, ctx), 0
    for c in range(5):
        scores = [unit(text)[c] @ q]
        scores += [(frozen[o] + inputs["noise"][r, o]) @ q for r in range(2) for o in range(5)]
        of_features -= (torch.stack(scores) / math.sqrt(32)).log_softmax(0)[0] / 5
    expected = {
        "itm": cross_entropy(clip, inputs, text),
        "head": share * 0.7 * head,
        "features": share * 0.2 * of_features,
    }
    check(method, inputs, expected)


def test_what_infoprompt_draws(make_trainer):
    trainer = make_trainer("InfoPrompt")
    trainer.epoch = 0
    views = {"img": torch.zeros(2, 3, 32, 32), "label": torch.zeros(2), "index": torch.arange(2)}
    known = trainer.known_features(views)
    assert known["tokens"].shape == (64,) and known["noise"].shape == (4, 5, 32)
    assert known["noise"].std().item() == pytest.approx(0.1, rel=0.1)
    assert known["tokens"].min() >= 0 and known["tokens"].max() < 49406 and known["share"] == 1
    again = trainer.known_features(views)
    assert all(torch.equal(known[key], again[key]) for key in known)
    for change in ("epoch", "images"):
        other = {**views, "index": torch.tensor([0, 2])} if change == "images" else views
        trainer.epoch = 1 if change == "epoch" else 0
        assert not torch.equal(trainer.known_features(other)["tokens"], known["tokens"]), change
    assert make_trainer("CoOp").known_features(views) == {}


def test_stablept(exact):
    method, clip, inputs = exact("StablePT", N_CTX=3, CONTRAST_WEIGHT=0.5)
    soft, heads, width = method.soft, 4, 16
    p = dict(soft.named_parameters())

    def norm(x, name):
        return F.layer_norm(x, (64,), p[f"{name}.weight"], p[f"{name}.bias"])

    tokens = tokenize([TEMPLATE.format(name) for name in NAMES])
    x = clip.token_embedding(tokens) + clip.positional_embedding
    x = clip.ln_final(clip.transformer(x.transpose(0, 1)).transpose(0, 1))
    rows = []
    for c, end in enumerate(tokens.argmax(-1).tolist()):
        t, own = norm(x[c, : end + 1], "norm_texts"), norm(p["ctx"], "norm_prompts")
        read = []
        for h in range(heads):
            part = slice(h * width, (h + 1) * width)
            q, k, v = (y @ p[f"{n}.weight"][part].t() for n, y in (("q", own), ("k", t), ("v", t)))
            read.append((q @ k.t() / math.sqrt(width)).softmax(1) @ v)
        y = own + torch.cat(read, dim=1) @ p["out.weight"].t() + p["out.bias"]
        y = norm(y, "norm_mlp")
        hidden = F.gelu(y @ p["mlp.0.weight"].t() + p["mlp.0.bias"])
        y = y + hidden @ p["mlp.2.weight"].t() + p["mlp.2.bias"]
        feature = x[c, end] @ clip.text_projection
        rows.append(feature + p["project.weight"] @ y.mean(dim=0))
    text, label = torch.stack(rows), inputs["label"]
    torch.testing.assert_close(method.encode_text(), text, rtol=1e-10, atol=1e-10)
    both, labels = (
        [*unit(inputs["image"]), *(unit(text)[y] for y in label)],
        label.repeat(2).tolist(),
    )
    loss = 0
    for i in range(len(both)):
        others = [j for j in range(len(both)) if j != i]
        log_p = (torch.stack([both[i] @ both[j] for j in others]) / 0.3).log_softmax(0)
        positive = [log_p[n] for n, j in enumerate(others) if labels[j] == labels[i]]
        loss -= sum(positive) / len(positive) / len(both)
    itm = cross_entropy(clip, inputs, text)
    check(method, inputs, {"itm": itm, "contrast": 0.5 * loss})


@pytest.mark.parametrize("name", sorted(TRAINERS))
def test_it_starts_as_a_hand_written_prompt(exact, name):
    """InfoPrompt from words as these, StablePT as the data set's template."""
    method, clip, inputs = exact(name, moved=False)
    template = {"InfoPrompt": "a photo of a {}.", "StablePT": TEMPLATE}[name]
    expected = cross_entropy(clip, inputs, encoded(clip, [template.format(n) for n in NAMES]))
    label = inputs.pop("label")
    found = method.losses(method.features(**inputs), label)["itm"]
    assert found.item() == pytest.approx(expected.item(), rel=1e-10)


def test_numbers_of_parameters():
    """On ViT-B/16's text tower: InfoPrompt's are the context's and A's."""
    soft = SoftPrompts(torch.randn(10, 512), 512)
    attention, mlp = 4 * 512**2 + 512, 2 * 512 * 256 + 256 + 512
    assert sum(p.numel() for p in soft.parameters()) == (
        10 * 512 + 6 * 512 + attention + mlp + 512**2
    )
    with pytest.raises(UserError, match="HEADS is 5; it must divide 512"):
        SoftPrompts(torch.randn(2, 512), 512, heads=5)


def test_contrast_by_hand():
    """Two rows of one class, and two of another at right angles."""
    x = torch.tensor([[1.0, 0], [1, 0], [0, 1], [0, 1]])
    expected = -math.log(math.exp(2) / (math.exp(2) + 2))
    found = contrast(x, torch.tensor([0, 0, 1, 1]), 0.5)
    assert found.item() == pytest.approx(expected)


def test_starts_of_soft_prompts(make_trainer):
    small = make_trainer("StablePT", TRAINER__STABLEPT__INIT_STD=0.02).method.soft.ctx
    assert small.shape == (10, 64) and small.std().item() == pytest.approx(0.02, rel=0.15)
    method = make_trainer("StablePT", TRAINER__STABLEPT__CTX_INIT="a photo of a").method
    words = method.encoders.text.token_embedding.weight[[320, 1125, 539, 320]]
    torch.testing.assert_close(method.soft.ctx, words.float(), rtol=0, atol=0)
