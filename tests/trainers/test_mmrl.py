"""MMRL and MMRL++: which logits are tested, the loss, the start, and one made of the other."""

import pytest
import torch
import torch.nn.functional as F

from clip import tokenize
from dassl.utils import UserError
from trainers.mmrl import Representation
from trainers.mmrlpp import SharedRepresentation

BOTH = ["MMRL", "MMRLpp"]
SIZES = (5, 512, 7, (512, 768), 512)


@pytest.fixture
def image():
    return torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def scores(method, image):
    """What is tested, and z_f and z_r by their definition."""
    features = method.eval().features(image)
    image, rep, text = (
        F.normalize(x, dim=-1) for x in (features.image, features.more["rep"], features.text)
    )
    return method.logits(features), 100 * image @ text.t(), 100 * rep @ text.t()


@pytest.mark.parametrize("name", BOTH)
@pytest.mark.parametrize(
    ("trained", "fused"),
    [("abcde", True), ("gfabcde", True), ("abcd", False), ("xyz", False), ("", False)],
)
def test_the_classes_identity_tells_which_logits_are_tested(
    make_trainer, image, name, trained, fused
):
    method = make_trainer(name).method
    method.classes.keys[:] = "abcde"
    method.load_trained(method.trained_state(), list(trained))
    found, itm, rep = scores(method, image)
    expected = 0.7 * itm + 0.3 * rep if fused else itm
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-4)
    assert bool(method.left_out) != fused
    assert not torch.allclose(itm, rep, atol=0.1)


def test_the_public_codes_prompts_tell_its_classes(make_trainer, image, tmp_path):
    base = make_trainer("MMRL", output=tmp_path / "base", DATASET__SUBSAMPLE_CLASSES="base")
    ids = tokenize(base.method.classes.sentences())
    prompts = base.method.encoders.text.token_embedding(ids).detach()
    learned = {
        f"{'image_encoder' if name == 'proj_rep' else 'representation_learner'}.{name}": value
        for name, value in base.method.learner.state_dict().items()
    }
    folder = tmp_path / "public" / "MultiModalRepresentationLearner"
    folder.mkdir(parents=True)
    for told, fused in ((True, False), (False, True)):
        state = {**learned, **({"prompt_embeddings": prompts} if told else {})}
        torch.save({"state_dict": state, "epoch": 3}, folder / "model.pth.tar-3")
        for part, expected in (("base", True), ("all", fused)):
            options = {"output": tmp_path / f"{part}{told}", "DATASET__SUBSAMPLE_CLASSES": part}
            trainer = make_trainer("MMRL", **options)
            trainer.load_model(str(tmp_path / "public"), epoch=3)
            assert trainer.method.trained_classes == expected


@pytest.mark.parametrize("name", BOTH)
def test_the_loss_by_its_equation(make_trainer, image, name):
    options = {"ALPHA": 0.25, "REG_WEIGHT": 3.0}
    method = make_trainer(name, **{f"TRAINER__{name}__{k}": v for k, v in options.items()}).method
    label = torch.tensor([4, 0, 1])
    _, itm, rep = scores(method, image)
    features = method.train().features(image)
    with torch.no_grad():
        losses = method.losses(features, label)
        frozen = method.encoders.image(image)
        text = method.encoders.text.encode(method.classes.sentences())
    expected = {
        "itm": 0.25 * F.cross_entropy(itm, label),
        "rep": 0.75 * F.cross_entropy(rep, label),
        "image": 3 * (1 - F.cosine_similarity(features.image, frozen).mean()),
        "text": 3 * (1 - F.cosine_similarity(features.text, text).mean()),
    }
    assert losses.keys() == expected.keys()
    for key, value in expected.items():
        torch.testing.assert_close(losses[key], value, rtol=1e-4, atol=1e-5)


def test_frozen_features_of_tokens_that_are_kept(make_trainer, image):
    method = make_trainer("MMRL").method.train()
    tokens = method.encoders.image.below(image, method.image_layer())
    assert method.image_layer() == 1
    frozen = method.features(tokens).more["frozen_image"]
    torch.testing.assert_close(frozen, method.encoders.image(image))


@torch.no_grad()
def test_mmrl_is_made_of_what_mmrlpp_learns(make_trainer, image, tmp_path):
    """With β = 1, its maps W + a b and its projection P + a b."""
    small = make_trainer("MMRLpp", output=tmp_path / "a", TRAINER__MMRLpp__BETA=1.0).method
    large = make_trainer("MMRL", output=tmp_path / "b").method
    for parameter in small.trained().values():
        parameter += 0.05 * torch.randn_like(parameter)
    own, learner = small.learner, large.learner
    learner.compound_rep_tokens.copy_(own.compound_rep_tokens)
    for maps, aligner in (
        (learner.compound_rep_tokens_r2tproj, own.srra_r2tproj),
        (learner.compound_rep_tokens_r2vproj, own.srra_r2vproj),
    ):
        for linear, residual in zip(maps, aligner.srra, strict=True):
            linear.weight.copy_(aligner.weight + residual.A @ residual.B)
            linear.bias.copy_(residual.bias)
    learner.proj_rep.copy_(small.encoders.image.vit.proj + own.A @ own.B)
    for x, y in zip(scores(small, image), scores(large, image), strict=True):
        torch.testing.assert_close(x, y, rtol=1e-4, atol=1e-3)
    small.keep = 0.5
    assert not torch.allclose(scores(small, image)[1], scores(large, image)[1], atol=0.1)


def test_starts():
    """All layers from one map; a low-rank part adds nothing at first."""
    torch.manual_seed(0)
    large, small = Representation(*SIZES), SharedRepresentation(*SIZES)
    for maps in (large.text(), large.image(), small.text(), small.image()):
        assert len(maps) == 7 and all(torch.equal(maps[0], x) for x in maps)
    assert large.compound_rep_tokens.std().item() == pytest.approx(0.02, rel=0.1)
    assert large.proj_rep.std().item() == pytest.approx(768**-0.5, rel=0.02)
    frozen = torch.randn(768, 512)
    assert torch.equal(small.projection(frozen), frozen)
    sizes = [sum(p.numel() for p in learner.parameters()) for learner in (large, small)]
    assert sizes == [4_992_256, 813_312]


@pytest.mark.parametrize("layers", ["()", "(3, 2)", "(2, 2)", "(0, 1)", "(2, 4)"])
def test_layers_that_are_not_there_are_refused(make_trainer, layers):
    with pytest.raises(UserError, match="REP_LAYERS is .*the towers have 1 to 3"):
        make_trainer("MMRL", TRAINER__MMRL__REP_LAYERS=layers)
