"""EPT and LAMP on CLIP, by the formulas at the head of their files."""

import pytest
import torch
import torch.nn.functional as F

from clip import tokenize
from dassl.utils import UserError
from tests.trainers.test_against_equations import Oracle
from trainers.lamp import LowRankContext

NAMES = ["ant", "brown bear", "cat", "desert fox", "eel"]


def built(make_trainer, backbone, name, **options):
    options = {f"TRAINER__{name}__{key}": value for key, value in options.items()}
    trainer = make_trainer(name, **options)
    batch = next(iter(trainer.train_loader_x))
    return trainer, Oracle(backbone, batch["img"], batch["label"])


@pytest.mark.parametrize("name", ["EPT", "LAMP"])
def test_it_starts_as_the_hand_written_prompt(make_trainer, backbone, name):
    trainer, oracle = built(make_trainer, backbone, name)
    hand = oracle.sentences("a photo of a {}.", NAMES)
    with torch.no_grad():
        z = oracle.itm(oracle.image(oracle.images), hand)
        losses = trainer.method.losses(trainer.method.features(oracle.images), oracle.labels)
    assert set(losses) == {"itm"}
    torch.testing.assert_close(
        losses["itm"], F.cross_entropy(z, oracle.labels), rtol=1e-4, atol=1e-4
    )


def move(method):
    with torch.no_grad():
        for parameter in method.trained().values():
            parameter += 0.1 * torch.randn_like(parameter)
    return {name: p.detach() for name, p in method.trained().items()}


@pytest.mark.parametrize("n", [2, 8])  # fewer than a name's tokens, and more
def test_ept(make_trainer, backbone, n):
    trainer, oracle = built(make_trainer, backbone, "EPT", TOKENS=n)
    p = move(trainer.method)
    v0, h = p["context.ctx"], 32
    ab = p["shift.a"] @ p["shift.b"]
    q, k, v = v0 @ p["context.fusion.q"], ab @ p["context.fusion.k"], ab @ p["context.fusion.v"]
    context = v0 + (q @ k.t() / h**0.5).softmax(dim=1) @ v @ p["context.fusion.o"]
    gates = (p["context.projection.gate"] @ v0.mean(0)).softmax(0)
    for gate, down, up in zip(
        gates, p["context.projection.down"], p["context.projection.up"], strict=True
    ):
        context = context + gate * F.relu(v0 @ down) @ up
    tokens = tokenize([f"X X X X {name}." for name in NAMES])
    clip = oracle.clip
    x = clip.token_embedding(tokens)
    x = torch.cat([x[:, :1], context.expand(5, 4, -1), x[:, 5:]], dim=1)
    for c, end in enumerate(tokens.argmax(-1).tolist()):  # its own tokens: up to EOT
        for j in range(min(n, end - 5)):
            x[c, 5 + j] += ab[j]
    x = clip.transformer((x + clip.positional_embedding).transpose(0, 1)).transpose(0, 1)
    expected = clip.ln_final(x)[torch.arange(5), tokens.argmax(-1)] @ clip.text_projection
    with torch.no_grad():
        found = trainer.method.encode_text()
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("pool", [1, 4])
def test_lamp(make_trainer, backbone, pool):
    trainer, oracle = built(make_trainer, backbone, "LAMP", POOL=pool)
    p = move(trainer.method)
    u, q, v, kappa = (p[f"context.{name}"] for name in ("u", "q", "v", "kappa"))
    assert u.shape == (4 * pool, 4)
    rows = u @ torch.diag(q) @ v
    near = torch.zeros(len(u), len(u))
    for i in range(len(u)):
        for j in range(i + 1):
            near[i, j] = u[i] @ u[j]
        near[i] /= near[i].abs().sum()
    rows = rows + kappa * near @ rows
    context = torch.stack([rows[m * pool : (m + 1) * pool].mean(0) for m in range(4)])
    with torch.no_grad():
        expected = oracle.text(NAMES, context)
        found = trainer.method.encode_text()
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_numbers_of_parameters():
    """On ViT-B/16's text tower."""
    context = LowRankContext(torch.randn(16, 512), 4, 4)
    assert sum(p.numel() for p in context.parameters()) == 16 * 4 + 4 + 4 * 512 + 1 == 2117


def test_rates(make_trainer):
    for name, faster, rate in (
        ("EPT", {"shift.a", "shift.b"}, 2),
        ("LAMP", {"context.q"}, 5),
    ):
        method = make_trainer(name).method
        rates = {id(p): g["lr"] for g in method.param_groups(1.0) for p in g["params"]}
        for key, parameter in method.trained().items():
            assert rates[id(parameter)] == (rate if key in faster else 1), key


def test_lamp_without_words(make_trainer):
    options = {"TRAINER__LAMP__CTX_INIT": "", "TRAINER__LAMP__N_CTX": 3, "TRAINER__LAMP__POOL": 2}
    context = make_trainer("LAMP", **options).method.context
    assert context.u.shape == (6, 4) and context().shape == (3, 64)
    with pytest.raises(UserError, match="RANK is 7"):
        make_trainer("LAMP", TRAINER__LAMP__RANK=7, **options)
