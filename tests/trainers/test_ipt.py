"""IPT on CLIP, by the formulas at the head of its file, written out in fp64."""

import math

import pytest
import torch
import torch.nn.functional as F

from clip.clip import load_model
from clip.prompting import Encoders
from dassl.utils import UserError
from tests.trainers.test_against_equations import Oracle
from trainers.ipt import KeyPrompts

NAMES = ["ant", "brown bear", "cat", "desert fox", "eel"]


def built(make_trainer, backbone, moved=False, **options):
    """The method in fp64, and the oracle."""
    options = {f"TRAINER__IPT__{key}": value for key, value in options.items()}
    trainer = make_trainer("IPT", **options)
    batch = next(iter(trainer.train_loader_x))
    exact = load_model(trainer.cfg.MODEL.BACKBONE.NAME)[0].double()
    method = trainer.build_method(trainer.cfg, Encoders(exact), trainer.method.classes)
    method = method.double().freeze().train()
    if moved:
        with torch.no_grad():
            for parameter in method.trained().values():
                parameter += 0.1 * torch.randn_like(parameter)
    # Kept before the layer; images where nothing is kept.
    kept = next(iter(trainer.training_batches()))["img"]
    assert kept.dim() == (3 if method.image_layer() else 4)
    oracle = Oracle(backbone, batch["img"].double(), batch["label"])
    oracle.clip.double()
    oracle.tau = oracle.clip.logit_scale.exp()
    return method, oracle


def keys_of(tokens, k):
    """Places of the k of T (G²,d_v) with the largest cosine to their mean, in order."""
    mean = tokens.mean(0)
    cosines = [(t @ mean / t.norm() / mean.norm()).item() for t in tokens]
    return sorted(sorted(range(len(tokens)), key=lambda i: -cosines[i])[:k])


def prompts_by_hand(p, keys):
    """P (k,d_v) of the key tokens (k,d_v), term by term."""
    centered = keys - keys.mean(-1, keepdim=True)
    normed = centered / (centered.square().mean(-1, keepdim=True) + 1e-5).sqrt()
    hidden = (p["norm.weight"] * normed + p["norm.bias"]) @ p["down.weight"].t() + p["down.bias"]
    filters, rows = p["conv.weight"][:, 0], []
    for i in range(len(hidden)):
        row = p["conv.bias"]
        for side in (-1, 0, 1):
            if 0 <= i + side < len(hidden):
                row = row + filters[:, side + 1] * hidden[i + side]
        rows.append(row)
    x = torch.stack(rows)
    return (x * (1 + torch.erf(x / math.sqrt(2))) / 2) @ p["up.weight"].t() + p["up.bias"]


def image_by_hand(visual, image, layer, k, place, p):
    """F (D) of one image (3,I,I)."""
    x = visual.embed(image[None])[0]
    for i, block in enumerate(visual.transformer.resblocks):
        if i == layer:
            patches = x[1:]
            places = keys_of(patches, k)
            prompts = prompts_by_hand(p, patches[places])
            if place == "insert":
                x = torch.cat([x, prompts])
            else:
                x = torch.stack(
                    [
                        x[j] + (prompts[places.index(j - 1)] if j - 1 in places else 0)
                        for j in range(len(x))
                    ]
                )
        x = visual.ln_pre(x) if i == 0 else x
        x = block(x[:, None])[:, 0]
    return visual.ln_post(x[0]) @ visual.proj


@pytest.mark.parametrize(
    "layer,k,place", [(1, 8, "insert"), (2, 5, "insert"), (0, 3, "insert"), (1, 8, "add")]
)
def test_losses_and_gradients(make_trainer, backbone, layer, k, place):
    method, oracle = built(
        make_trainer, backbone, moved=True, LAYER=layer, TOKENS=k, PLACE=place, HIDDEN=6
    )
    leaves = list(method.trained().values())
    p = {name.partition(".")[2]: value for name, value in method.trained().items()}
    f = torch.stack(
        [image_by_hand(oracle.clip.visual, x, layer, k, place, p) for x in oracle.images]
    )
    text = oracle.sentences("a photo of a {}.", NAMES)
    expected = F.cross_entropy(oracle.itm(f, text), oracle.labels)
    expected_grads = torch.autograd.grad(expected, leaves)
    tokens = method.encoders.image.below(oracle.images, layer)
    for given in (oracle.images, tokens):
        losses = method.losses(method.features(given), oracle.labels)
        assert set(losses) == {"itm"}
        grads = torch.autograd.grad(losses["itm"], leaves)
        for found, wanted in zip((losses["itm"], *grads), (expected, *expected_grads), strict=True):
            torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("place", ["insert", "add"])
def test_the_start(make_trainer, backbone, place):
    """Of "add" the hand-written prompt's; of "insert" that with k zero tokens."""
    method, oracle = built(make_trainer, backbone, PLACE=place)
    visual, text = oracle.clip.visual, oracle.sentences("a photo of a {}.", NAMES)
    hand = F.cross_entropy(oracle.itm(oracle.image(oracle.images), text), oracle.labels)
    x = visual.ln_pre(visual.embed(oracle.images)).transpose(0, 1)
    for i, block in enumerate(visual.transformer.resblocks):
        if i == 1:  # a third of three
            x = torch.cat([x, x.new_zeros(8, *x.shape[1:])])
        x = block(x)
    zeros = visual.ln_post(x[0]) @ visual.proj
    inserted = F.cross_entropy(oracle.itm(zeros, text), oracle.labels)
    loss = method.losses(method.features(oracle.images), oracle.labels)["itm"]
    expected = hand if place == "add" else inserted
    torch.testing.assert_close(loss, expected, rtol=1e-9, atol=1e-10)
    assert (hand - inserted).abs() > 1e-4


def test_number_of_parameters():
    """On ViT-B/16's image tower."""
    prompts = KeyPrompts(768)
    w1, conv, w2 = 768 * 64 + 64, 64 * 3 + 64, 64 * 768 + 768
    assert sum(p.numel() for p in prompts.parameters()) == 2 * 768 + w1 + conv + w2 == 100928


@pytest.mark.parametrize(
    "key,value,said",
    [
        ("LAYER", 3, "TRAINER.IPT.LAYER is 3; the tower has layers 0 to 2"),
        ("LAYER", -2, "TRAINER.IPT.LAYER is -2; the tower has layers 0 to 2"),
        ("TOKENS", 17, "TRAINER.IPT.TOKENS is 17; an image has 16 tokens"),
        ("PLACE", "end", "TRAINER.IPT.PLACE"),
    ],
)
def test_what_the_tower_has_no_place_for(make_trainer, key, value, said):
    with pytest.raises(UserError, match=said):
        make_trainer("IPT", **{f"TRAINER__IPT__{key}": value})
