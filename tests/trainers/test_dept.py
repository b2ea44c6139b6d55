"""DePT around any method: the heads, the loss, the rule for which head applies."""

import math

import pytest
import torch
import torch.nn.functional as F

from clip.prompting import Encoders
from dassl.utils import UserError
from tests.conftest import tiny_clip
from trainers.dept import CATHead, DePT
from tuning.method import Classes, Features, Method

B, C, D = 6, 4, 32


class Given(Method):
    """A method that trains nothing and has one more loss."""

    def losses(self, features, label):
        return {**super().losses(features, label), "kg": torch.tensor(0.25)}


def classes(*names: str) -> Classes:
    return Classes([n.upper() for n in names], list(names))


def dept(names=("a", "b", "c", "d"), head=None, **options) -> DePT:
    torch.manual_seed(0)
    method = Given(Encoders(tiny_clip()), classes(*names))
    wrapped = DePT(method, head or CATHead(D, len(names)), **options)
    for parameter in wrapped.cat.parameters():
        torch.nn.init.normal_(parameter)
    return wrapped


def features(conditional: bool = False) -> tuple[Features, torch.Tensor]:
    torch.manual_seed(1)
    text = torch.randn(*((B,) if conditional else ()), C, D)
    return Features(torch.randn(B, D), text), torch.randint(C, (B,))


@pytest.mark.parametrize("conditional", [False, True])
def test_loss_scales_itm_adds_cat_and_leaves_the_rest(conditional):
    model, (x, label) = dept(weight=0.7), features(conditional)
    own = x.text[torch.arange(B), label] if conditional else x.text[label]
    p = dict(model.cat.named_parameters())
    rows = torch.cat(
        [
            p["cwt_text.scale"] * own + p["cwt_text.bias"],
            p["cwt_image.scale"] * x.image + p["cwt_image.bias"],
        ]
    )
    z = rows @ p["classifier.weight"].t() + p["classifier.bias"]
    losses = model.losses(x, label)
    torch.testing.assert_close(losses["cat"], 0.7 * F.cross_entropy(z, label.repeat(2)))
    itm = F.cross_entropy(model.itm_logits(x), label)
    torch.testing.assert_close(losses["itm"], 0.3 * itm)
    assert losses["kg"] == 0.25


def test_fusions():
    x, _ = features()
    itm = dept().method.logits(x)
    cat = dept().cat.logits(x, torch.tensor(1.0))
    torch.testing.assert_close(dept(weight=0.4).logits(x), 0.6 * itm + 0.4 * cat)
    torch.testing.assert_close(dept(fusion="none").logits(x), cat)
    mixed = dept(weight=0.4, fusion="prob").logits(x).exp()
    torch.testing.assert_close(mixed, 0.6 * itm.softmax(-1) + 0.4 * cat.softmax(-1))
    torch.testing.assert_close(dept(weight=0.0).logits(x), itm)


def test_head_applies_by_class_identity():
    trained = dept()
    state, keys = trained.trained_state(), ["a", "b", "c", "d"]
    x, _ = features()
    image = x.image
    z = trained.cat.logits(x, torch.tensor(1.0))

    def logits(*names):
        model = dept(names)
        model.load_trained(state, keys)
        text = torch.randn(len(names), D, generator=torch.Generator().manual_seed(2))
        given = Features(image, text)
        return model.logits(given), model.method.logits(given)

    same, itm = logits("d", "c", "b", "a")
    torch.testing.assert_close(same, 0.3 * itm + 0.7 * z[:, [3, 2, 1, 0]])
    subset, itm = logits("c", "a")
    torch.testing.assert_close(subset, 0.3 * itm + 0.7 * z[:, [2, 0]])
    for other in (("a", "e"), ("e", "f", "g", "h"), ("a", "b", "c", "d", "e")):
        fused, itm = logits(*other)
        torch.testing.assert_close(fused, itm, rtol=0, atol=0)


def test_display_names_are_not_identity():
    model = dept(("n01", "n02"), CATHead(D, 2))
    model.classes = Classes(["missile", "missile"], ["n01", "n02"])
    other = dept(("n03", "n04"))
    other.load_trained(model.trained_state(), ["n01", "n02"])
    assert other.rows is None


@pytest.mark.parametrize(
    "options,parameters",
    [
        ({}, 4 * D + (D + 1) * C),
        ({"cwt": "shared"}, 2 * D + (D + 1) * C),
        ({"cwt": "none"}, (D + 1) * C),
        ({"kind": "similarity"}, 4 * D),
        ({"kind": "similarity", "cwt": "shared"}, 2 * D),
        ({"rows": "image"}, 4 * D + (D + 1) * C),
    ],
)
def test_ablations_train_and_load(options, parameters):
    model, (x, label) = dept(head=CATHead(D, C, **options)), features()
    assert sum(p.numel() for p in model.trained().values()) == parameters
    assert model.losses(x, label)["cat"].isfinite()
    again = dept(head=CATHead(D, C, **options))
    again.load_trained(model.trained_state(), model.classes.keys)
    torch.testing.assert_close(again.logits(x), model.logits(x))


def test_image_rows_only():
    model, (x, label) = dept(head=CATHead(D, C, rows="image")), features()
    z = model.cat.logits(x, torch.tensor(1.0))
    torch.testing.assert_close(model.losses(x, label)["cat"], 0.7 * F.cross_entropy(z, label))


def test_similarity_head_is_a_cosine_between_transformed_features():
    model, (x, _) = dept(head=CATHead(D, C, kind="similarity")), features()
    p = dict(model.cat.named_parameters())
    f = p["cwt_image.scale"] * x.image + p["cwt_image.bias"]
    e = p["cwt_text.scale"] * x.text + p["cwt_text.bias"]
    expected = 7 * F.cosine_similarity(f[:, None], e[None], dim=-1)
    torch.testing.assert_close(model.cat.logits(x, torch.tensor(7.0)), expected)


def test_head_starts_as_the_identity_and_learns_faster():
    head = CATHead(D, C)
    x = torch.randn(3, D)
    torch.testing.assert_close(head.cwt_image(x), x)
    torch.testing.assert_close(head.cwt_text(x), x)
    groups = dept(lr_mult=6.5).param_groups(0.0035)
    assert [g["lr"] for g in groups] == pytest.approx([0.0035, 0.0035 * 6.5])
    assert len(groups[1]["params"]) == 6


@pytest.mark.parametrize(
    "make,message",
    [
        (lambda: dept(weight=1.5), "WEIGHT is 1.5"),
        (lambda: dept(fusion="logit"), "did you mean 'logits'"),
        (lambda: CATHead(D, C, kind="liner"), "did you mean 'linear'"),
        (lambda: CATHead(D, C, cwt="both"), "separate, shared, none"),
        (lambda: CATHead(D, C, rows="text"), "both, image"),
    ],
)
def test_wrong_switches_are_named(make, message):
    with pytest.raises(UserError, match=message):
        make()


def test_prob_fusion_survives_vanishing_probabilities():
    model, (x, _) = dept(fusion="prob"), features()
    model.encoders.logit_scale.data.fill_(math.log(1e4))
    assert model.logits(x).softmax(-1).isfinite().all()
