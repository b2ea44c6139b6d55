"""SkipT: where it starts, which classes a step takes, what it trains and what it leaves alone."""

import math

import pytest
import torch
import torch.nn.functional as F

import datasets  # noqa: F401 - registers the data sets
from clip.clip import load_model
from dassl.data.datasets import DATASET_REGISTRY
from dassl.utils import UserError
from tests.test_numbers_of_methods import config
from trainers.skipt import reserve_shares

A = "a photo of a {}."
TEMPLATES = {
    "ImageNet": A,
    "ImageNetV2": A,
    "ImageNetSketch": "a sketch of a {}.",
    "ImageNetA": "a bad photo of a {}.",
    "ImageNetR": "a rendition of a {}.",
    "Caltech101": "itap of a {}.",
    "DescribableTextures": "itap of a {}.",
    "EuroSAT": "a centered satellite photo of {}.",
    "FGVCAircraft": "a bright photo of a {}, a type of aircraft.",
    "Food101": "a photo of the nice {}.",
    "OxfordFlowers": "a close-up photo of a {}.",
    "OxfordPets": "a bad photo of a {}, a type of pet.",
    "SUN397": A,
    "StanfordCars": "a photo of the {}, a type of car.",
    "UCF101": "a photo of a {}, a type of sport.",
}


def test_templates(make_trainer):
    trainer = make_trainer("SkipT")
    found = {n: trainer.template_of(trainer.cfg, DATASET_REGISTRY.get(n)) for n in TEMPLATES}
    assert found == TEMPLATES


def test_it_starts_as_the_template_and_trains_the_upper_blocks(make_trainer):
    trainer = make_trainer("SkipT", OPTIM__LR=0.01, DATASET__TEMPLATE="one {} here")
    method, clip = trainer.method, load_model(trainer.cfg.MODEL.BACKBONE.NAME)[0].float()
    names = {name.partition("_upper.") for name in method.trained()}
    assert {tower for tower, *_ in names} == {"image", "text"}
    blocks = {rest.split(".")[1] for *_, rest in names if rest.startswith("blocks.")}
    heads = {rest for *_, rest in names if not rest.startswith("blocks.")}
    assert blocks == {"1", "2"}  # START_LAYER is 1 here
    assert heads == {
        *("ln_post.weight", "ln_post.bias", "proj"),
        *("ln_final.weight", "ln_final.bias", "text_projection"),
    }
    batch = next(iter(trainer.train_loader_x))
    with torch.no_grad():
        sentences = [f"one {name} here" for name in ("ant", "brown bear", "cat", "desert fox")]
        text = method.encoders.text.encode([*sentences, "one eel here"])
        logits = (
            clip.logit_scale.exp()
            * F.normalize(clip.visual(batch["img"]))
            @ (F.normalize(text).t())
        )
        found = method.logits(method.features(batch["img"]))
    torch.testing.assert_close(found, logits, rtol=1e-4, atol=1e-3)
    shared = {k: v.clone() for k, v in method.encoders.state_dict().items()}
    before = method.trained_state()
    trainer.train()
    assert all(not torch.equal(v, before[k]) for k, v in method.trained_state().items())
    assert all(torch.equal(v, shared[k]) for k, v in method.encoders.state_dict().items())


def test_shares_of_the_ranks_beyond():
    shares = reserve_shares(6, 0.3)
    density = [math.exp(-x / 0.3) for x in range(6)]
    expected = [(q - density[-1]) / (density[0] - density[-1]) for q in density]
    torch.testing.assert_close(shares, torch.tensor(expected))
    assert (shares[0], shares[-1]) == (1, 0)
    assert reserve_shares(1, 0.3).tolist() == [0]


@pytest.mark.parametrize("draw", [0.0, 0.99])
def test_a_step_takes_the_nearest_classes(make_trainer, draw):
    """Of five n = 2, the one at rank 3 always, rank 4 by chance, the last never."""
    trainer = make_trainer("SkipT", TRAINER__SKIP__TOP_RATIO=0.4, TRAINER__SKIP__LAMBDA=3.0)
    method = trainer.method.train()
    batch = next(iter(trainer.train_loader_x))
    image, label = batch["img"][:2], torch.tensor([3, 3])
    with torch.no_grad():
        f = F.normalize(method.encoders.image(image))
        text = method.encoders.text.encode(method.classes.sentences())
        ranks = (f @ F.normalize(text).t()).max(dim=0).values
        ranks[3] = 2.0  # the images' own comes first
        order = ranks.argsort(descending=True).tolist()
        reserve = torch.full((5,), draw)
        kept = method.classes_for(method.encoders.image(image), label, reserve)
        taken = order[:4] if draw == 0 else order[:3]
        assert kept.nonzero()[:, 0].tolist() == sorted(taken)
        features = method.features(image, kept=kept)
        z = method.encoders.temperature * f @ F.normalize(text[taken]).t()
        expected = F.cross_entropy(z, torch.tensor([taken.index(3)] * 2))
        loss = method.losses(features, label)["itm"]
    torch.testing.assert_close(loss, expected, rtol=1e-4, atol=1e-4)
    own = torch.arange(5)  # more classes than n: none is left out
    everyone = method.classes_for(torch.randn(5, 32), own, torch.ones(5))
    assert everyone.all()


def test_a_step_is_over_the_classes_it_takes(make_trainer):
    trainer = make_trainer("SkipT", TRAINER__SKIP__TOP_RATIO=0.4)
    batch = next(iter(trainer.train_loader_x))
    inputs = trainer.step_inputs(batch)
    with torch.no_grad():
        image = trainer.method.encode_image(inputs["image"])
        kept = trainer.method.classes_for(image, inputs["label"], inputs["reserve"])
        features = trainer.method.train().features(inputs["image"], kept=kept)
        expected = trainer.method.losses(features, inputs["label"])["itm"]
    assert kept.sum() < 5
    trainer.num_batches, trainer.batch_idx, trainer.epoch = 2, 0, 0
    torch.testing.assert_close(trainer.forward_backward(batch)["loss"], expected)


def test_batches_of_one_class(make_trainer):
    options = {"SAMPLER": "RandomClassSampler", "N_INS": 2, "BATCH_SIZE": 2}
    options = {f"DATALOADER__TRAIN_X__{key}": value for key, value in options.items()}
    loader = make_trainer("SkipT", **options).train_loader_x
    assert [len(set(batch["label"].tolist())) for batch in loader] == [1] * 5
    assert config("SkipT").DATALOADER.TRAIN_X.SAMPLER == "RandomClassSampler"


def test_what_it_refuses(make_trainer):
    with pytest.raises(UserError, match="START_LAYER is 4; the towers have 3 layers"):
        make_trainer("SkipT", TRAINER__SKIP__START_LAYER=4)
    with pytest.raises(UserError, match="no token is dropped"):
        make_trainer("SkipT", TRAINER__SKIP__DROP_RATIO=0.5)
