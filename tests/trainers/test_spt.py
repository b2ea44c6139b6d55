"""SPT on CLIP, by the formula at the head of its file; the plain pass is the oracle's."""

import pytest
import torch
import torch.nn.functional as F

import train
from clip.clip import load_model
from clip.prompting import Encoders
from dassl.utils import UserError, load_checkpoint
from tests.trainers.test_against_equations import Oracle
from tuning.prompts import VisionPrompts

NAMES = ["ant", "brown bear", "cat", "desert fox", "eel"]


def started(make_trainer, **options):
    trainer = make_trainer("SPT", **options)
    trainer.before_train()
    return trainer


def prompts_of(method):
    vision = method.prompts["vision"]
    return [vision.prompts.detach(), *(p.detach() for p in vision.deep)]


def banks(trainer, backbone):
    """(n,G²,d_v) for each layer of all training images, seen as in a test."""
    transform = trainer.dm.test_loader.dataset.transform
    from dassl.data.data_manager import DatasetWrapper

    wrapper = DatasetWrapper(trainer.cfg, trainer.dm.dataset.train_x, transform, is_train=False)
    images = torch.stack([wrapper[i]["img"] for i in range(len(wrapper))])
    visual = Oracle(backbone, None, None).clip.visual
    with torch.no_grad():
        x = visual.embed(images)
        found = [x]
        x = visual.ln_pre(x).transpose(0, 1)
        for block in visual.transformer.resblocks[:-1]:
            x = block(x)
            found.append(x.transpose(0, 1))
    return [x[:, 1:] for x in found]


def where(prompts, bank):
    """Each prompt's (image, place) in a bank; fails where it isn't in it."""
    rows = bank.flatten(0, 1)
    distance = (prompts[:, None] - rows).norm(dim=-1)
    nearest, row = distance.min(dim=1)
    assert nearest.max() < 1e-3 < distance.topk(2, dim=1, largest=False).values[:, 1].min()
    return [divmod(i, bank.shape[1]) for i in row.tolist()]


def test_prompts_are_tokens_of_the_training_images(make_trainer, backbone, capsys):
    trainer = started(make_trainer, TRAINER__VPT__N_CTX_VISION=6)
    assert "6 tokens per layer of 10 training images, seen as in a test" in capsys.readouterr().out
    layers = banks(trainer, backbone)
    places = [
        where(prompt, bank) for prompt, bank in zip(prompts_of(trainer.method), layers, strict=True)
    ]
    assert [len(set(own)) for own in places] == [6, 6, 6]  # different ones
    assert places[0] != places[1] != places[2]  # drawn for each layer
    assert len({image for own in places for image, _ in own}) > 3


def test_all_tokens_may_be_drawn_and_no_more(make_trainer, backbone):
    options = {"TRAINER__SPT__IMAGES": 1, "TRAINER__VPT__PROMPT_DEPTH_VISION": 1}
    trainer = started(make_trainer, TRAINER__VPT__N_CTX_VISION=16, **options)
    (prompt,) = prompts_of(trainer.method)
    places = where(prompt, banks(trainer, backbone)[0])
    assert len({image for image, _ in places}) == 1
    assert sorted(place for _, place in places) == list(range(16))
    with pytest.raises(UserError, match="N_CTX_VISION is 17; the images have 16 tokens"):
        started(make_trainer, TRAINER__VPT__N_CTX_VISION=17, **options)


def test_the_draw_is_the_seeds(make_trainer):
    first, again = (prompts_of(started(make_trainer).method) for _ in range(2))
    other = prompts_of(started(make_trainer, SEED=2).method)
    for one, same, different in zip(first, again, other, strict=True):
        assert torch.equal(one, same) and not torch.equal(one, different)


def test_first_loss_and_gradients_are_vpts_with_these_prompts(make_trainer, backbone):
    trainer = started(make_trainer)
    batch = next(iter(trainer.train_loader_x))
    oracle = Oracle(backbone, batch["img"].double(), batch["label"])
    oracle.clip.double()
    start = [p.double().requires_grad_() for p in prompts_of(trainer.method)]
    features = oracle.image(oracle.images, start[0], start[1:])
    text = oracle.sentences("a photo of a {}.", NAMES)
    expected = F.cross_entropy(
        oracle.clip.logit_scale.exp() * cosine(features, text), oracle.labels
    )
    expected_grads = torch.autograd.grad(expected, start)

    exact = load_model(trainer.cfg.MODEL.BACKBONE.NAME)[0].double()
    method = trainer.build_method(trainer.cfg, Encoders(exact), trainer.method.classes)
    method = method.double().freeze().train()
    method.load_trained(trainer.method.trained_state(), method.classes.keys)
    losses = method.losses(method.features(oracle.images), oracle.labels)
    assert set(losses) == {"itm"}
    vision = method.prompts["vision"]
    grads = torch.autograd.grad(losses["itm"], [vision.prompts, *vision.deep])
    for found, wanted in zip((losses["itm"], *grads), (expected, *expected_grads), strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-10)


def cosine(f, e):
    return F.normalize(f, dim=-1) @ F.normalize(e, dim=-1).t()


def test_without_tokens_it_is_vpt(command, tmp_path):
    train.main(command("SPT", output=tmp_path / "spt", TRAINER__SPT__INIT="normal"))
    train.main(command("VPT", output=tmp_path / "vpt"))
    one, other = (
        load_checkpoint(tmp_path / name / "prompt_learner" / "model.pth.tar-2")["state_dict"]
        for name in ("spt", "vpt")
    )
    assert set(one) == set(other) and all(torch.equal(one[key], other[key]) for key in one)


def test_number_of_parameters_and_refusals(make_trainer):
    """On ViT-B/16's image tower."""
    vision = VisionPrompts(8, 12, 768)
    assert sum(p.numel() for p in vision.parameters()) == 12 * 8 * 768 == 73728
    with pytest.raises(UserError, match="TRAINER.SPT.INIT"):
        make_trainer("SPT", TRAINER__SPT__INIT="words")
