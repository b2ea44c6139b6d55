"""Several views, and features at a block: exact, encoded once, kept."""

import pytest
import torch

from clip.clip import load_model
from clip.prompting import Branch, Encoders, ImageEncoder, TextEncoder, Tokens
from dassl.utils import UserError
from tests.tuning.small_methods import AUGMENTED, same
from tuning import feature_cache

pytestmark = pytest.mark.usefixtures("small_methods")


def test_two_views_are_two_draws_of_one_image(make_trainer):
    trainer = make_trainer("OfTwoViews", INPUT__TRANSFORMS=AUGMENTED)
    assert trainer.cfg.DATALOADER.K_TRANSFORMS == 2
    first, second = (next(iter(trainer.train_loader_x)) for _ in range(2))
    inputs = trainer.step_inputs(first)
    assert inputs["image"].shape == (4, 3, 32, 32)
    assert inputs["other_views"].shape == (1, 4, 3, 32, 32)
    assert not torch.equal(inputs["image"], inputs["other_views"][0])
    assert torch.equal(first["img"][1], second["img"][1])


@pytest.mark.parametrize("name", ["OfTwoViews", "DePT_OfTwoViews"])
def test_views_from_the_cache_are_the_same(run, name):
    plain = run(name, "plain", MODEL__FAST=False)
    first = run(name, "first")
    feature_cache._memory.clear()
    again = run(name, "again")
    for losses, others in zip(plain[1], first[1], strict=True):
        assert losses == pytest.approx(others, rel=1e-4)
    assert first[1] == again[1]
    same(first[0], again[0])


def test_a_number_of_views_that_a_method_does_not_want_is_refused(make_trainer):
    for name, views in (("CoOp", 2), ("OfTwoViews", 3)):
        with pytest.raises(UserError, match=rf"K_TRANSFORMS is {views}, but {name} wants"):
            make_trainer(name, DATALOADER__K_TRANSFORMS=views)


@pytest.fixture
def count_encoded(monkeypatch):
    seen, embed = [], ImageEncoder._chunks

    def counting(self, image):
        seen.append(len(image))
        return embed(self, image)

    monkeypatch.setattr(ImageEncoder, "_chunks", counting)
    return seen


@pytest.mark.parametrize(
    ("name", "layer"),
    [("InTheBlocks", 1), ("InTheLastBlock", 2), ("Reading", 2), ("TwoViews", None)],
)
def test_what_lies_below_is_encoded_once_and_kept(run, root, count_encoded, name, layer):
    plain = run(f"Of{name}", "plain", MODEL__FAST=False)
    first = run(f"Of{name}", "first")
    assert count_encoded and len(list(root.glob(".cache/features/*.pt"))) == 3
    feature_cache._memory.clear()
    count_encoded.clear()
    again = run(f"Of{name}", "again")
    assert not count_encoded
    assert first[1] == again[1] and first[2]["accuracy"] == again[2]["accuracy"]
    same(first[0], again[0])
    for losses, others in zip(plain[1], first[1], strict=True):
        assert losses == pytest.approx(others, rel=1e-3)


def in_double(trainer, fast=True):
    """Its method on encoders of its own, in fp64."""
    exact = load_model(trainer.cfg.MODEL.BACKBONE.NAME)[0].double()
    method = trainer.build_method(trainer.cfg, Encoders(exact, fast), trainer.method.classes)
    return method.double().freeze().train()


@pytest.mark.parametrize("fast", [True, False])
@pytest.mark.parametrize("name", ["InTheBlocks", "InTheLastBlock", "Reading"])
def test_going_on_from_a_block_is_exact(make_trainer, name, fast):
    trainer = make_trainer(f"Of{name}")
    method = in_double(trainer, fast)
    layer = method.image_layer()
    assert layer == (1 if name == "InTheBlocks" else 2)
    batch = next(iter(trainer.train_loader_x))
    image = batch["img"].double()
    results = []
    for given in (image, method.encoders.image.below(image, layer)):
        features = method.features(given)
        losses = method.losses(features, batch["label"])
        leaves = list(method.trained().values())
        grads = torch.autograd.grad(sum(losses.values()), leaves)
        results.append([features.image, *losses.values(), *grads])
    for whole, above in zip(*results, strict=True):
        assert (whole - above).abs().max() <= 1e-10 * max(1, whole.abs().max())


def test_text_below_a_branch_is_encoded_once(make_trainer, monkeypatch):
    method = in_double(make_trainer("OfInTheBlocks"))
    calls, below = [], TextEncoder.below

    def counting(self, *args):
        calls.append(args[1])
        return below(self, *args)

    monkeypatch.setattr(TextEncoder, "below", counting)
    several = [method.encode_text() for _ in range(3)]
    assert calls == [1]
    changes = [Branch(1 + i, module) for i, module in enumerate(method.text_branches)]
    whole = method.encoders.text(method.layout, changes=changes)
    assert all((text - whole).abs().max() <= 1e-10 for text in several)
    # A change further down begins further down.
    first = Tokens(0, torch.zeros(1, method.encoders.text.width).double())
    assert method.text_of(method.layout, [first]).shape == whole.shape
    assert calls == [1, 0]


def test_tokens_without_room_are_not_kept(make_trainer, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(feature_cache, "_IN_MEMORY_BYTES", 1)
    options = {"DATALOADER__FEATURE_CACHE_GB": 1e-9, "DATALOADER__FEATURE_CACHE": str(tmp_path)}
    trainer = make_trainer("OfInTheBlocks", **options)
    batches = list(trainer.testing_batches(trainer.test_loader))
    assert batches[0]["img"].dim() == 3
    assert "Image tokens before layer 1 of the test images: encoded, and not kept: too large" in (
        capsys.readouterr().out
    )
