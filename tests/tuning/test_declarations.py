"""What a method may declare, over small methods of the tests' own: none of the frame knows them."""

import json
import shutil

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn

import train
from clip.clip import load_model
from clip.prompting import Branch, Encoders, ImageEncoder, Read, TextEncoder, Tokens
from dassl.config import CfgNode, defaults
from dassl.engine import TRAINER_REGISTRY
from dassl.utils import UserError, load_checkpoint
from trainers.dept import twin_of
from tuning import feature_cache
from tuning.method import Classes, Features, Method, unit
from tuning.teacher import Teacher, digest_of
from tuning.trainer import PromptTrainer

AUGMENTED = "('random_resized_crop', 'random_flip', 'normalize')"


class Base(Method):
    """A linear map behind the frozen text features."""

    trained_modules = ("of_text",)

    def __init__(self, encoders, classes):
        super().__init__(encoders, classes)
        dim = encoders.embed_dim
        self.of_text = nn.Linear(dim, dim, bias=False)
        nn.init.eye_(self.of_text.weight)
        self.register_buffer("hand", encoders.text.encode(classes.sentences()), persistent=False)

    @classmethod
    def from_cfg(cls, cfg, encoders, classes):
        return cls(encoders, classes)

    def encode_text(self):
        return self.of_text(self.hand.to(self.of_text.weight.dtype))


class Caching(Base):
    """Adds the mean of each class's images, which are seen once; and some noise."""

    prepared = ("means", "noise")
    class_bound = ("means",)
    calls: list[int] = []

    def __init__(self, encoders, classes):
        super().__init__(encoders, classes)
        self.register_buffer("means", torch.zeros(len(classes.keys), encoders.embed_dim))
        self.register_buffer("noise", torch.zeros(encoders.embed_dim))

    def prepare(self, data):
        self.calls.append(len(data))
        features = unit(data.features())
        for c in range(len(self.means)):
            self.means[c] = features[data.labels == c].mean(dim=0)
        self.noise = 0.1 * torch.randn(self.noise.shape)

    def encode_text(self):
        return super().encode_text() + self.means + self.noise


class CachingAlone(Caching):
    """As it is prepared: nothing is trained."""

    trained_modules = ()
    label_fit = ()

    def encode_text(self):
        return self.hand + self.means


class Remembering(Base):
    """A trained row for each training image, started from its features."""

    trained_modules = ("memory",)
    image_bound = ("memory.rows",)

    def __init__(self, encoders, classes):
        super().__init__(encoders, classes)
        rows = torch.zeros(classes.images, encoders.embed_dim)
        self.memory = nn.ParameterDict({"rows": nn.Parameter(rows)})

    def prepare(self, data):
        self.memory["rows"].copy_(torch.cat([self.encoders.image(x) for x in data.images(0)]))

    def encode_text(self):
        return self.hand + unit(self.memory["rows"]).mean(dim=0)


class TwoViews(Base):
    """The second view of an image shall be near the first."""

    views_wanted = 2

    def losses(self, features, label):
        (other,) = features.more["other_views"]
        logits = self.encoders.temperature * unit(other) @ unit(features.text).t()
        agree = F.mse_loss(logits, self.itm_logits(features))
        return {**super().losses(features, label), "agree": 0.01 * agree}


class Adapter(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.down, self.up = nn.Linear(width, 4), nn.Linear(4, width)

    def forward(self, x):
        return self.up(self.down(x).relu())


class InTheBlocks(Method):
    """A branch in the last two blocks of both towers, and a read of a middle layer's tokens."""

    trained_modules = ("image_branches", "text_branches")
    first = 1

    def __init__(self, encoders, classes):
        super().__init__(encoders, classes)
        layers = range(self.first, encoders.image.layers)
        self.image_branches = nn.ModuleList(Adapter(encoders.image.width) for _ in layers)
        self.text_branches = nn.ModuleList(Adapter(encoders.text.width) for _ in layers)
        self.layout = encoders.text.layout(["a photo of a " + name for name in classes.names], 0)

    @classmethod
    def from_cfg(cls, cfg, encoders, classes):
        return cls(encoders, classes)

    def image_changes(self):
        return [Branch(self.first + i, m) for i, m in enumerate(self.image_branches)]

    def encode_text(self):
        changes = [Branch(self.first + i, m) for i, m in enumerate(self.text_branches)]
        return self.text_of(self.layout, changes)


class InTheLastBlock(InTheBlocks):
    """And tokens at a layer below, which are only read."""

    first = 2

    def image_reads(self):
        return {"patches": Read(2, slice(1, 5))}

    def losses(self, features, label):
        small = features.more["patches"].float().square().mean() * features.image.float().mean()
        return {**super().losses(features, label), "small": 0.001 * small}


class Reading(Base):
    """Reads the last block's patches of an unchanged tower."""

    image_reads = lambda self: {"patches": Read(at=slice(1, 5), projected=True)}  # noqa: E731

    def losses(self, features, label):
        local = unit(features.more["patches"]).mean(dim=1) @ unit(features.text).t()
        return {**super().losses(features, label), "local": F.cross_entropy(local, label)}


class Alternating(Base):
    """Two optimizers, one after the other, each on a forward pass of its own."""

    trained_modules = ("of_text", "of_image")

    def __init__(self, encoders, classes):
        super().__init__(encoders, classes)
        dim = encoders.embed_dim
        self.of_image = nn.Linear(dim, dim, bias=False)
        nn.init.eye_(self.of_image.weight)

    def encode_image(self, image):
        return self.of_image(super().encode_image(image).to(self.of_image.weight.dtype))

    def own_optimizers(self, c):
        own = torch.optim.AdamW(self.of_image.parameters(), lr=1e-3)
        return {"of_image": (own, torch.optim.lr_scheduler.ExponentialLR(own, 0.5))}

    def own_step(self, batch, own):
        for name in own.optimizers:
            own.zero_grad()
            losses = own.losses(batch)
            own.backward(sum(losses.values()))
            own.update(name)
        return losses


class TwoOptimizers(Alternating):
    """The same two, on the usual step."""

    own_step = Method.own_step


class WithOthers(Base):
    """The learned features shall be told from those of classes without images."""

    sees = ("new_class_names",)

    def __init__(self, encoders, classes):
        super().__init__(encoders, classes)
        all_names = classes.with_others()
        everyone = encoders.text.encode(all_names.sentences())
        self.register_buffer("everyone", unit(everyone), persistent=False)

    def losses(self, features, label):
        logits = self.encoders.temperature * unit(features.image) @ self.everyone.t()
        return {**super().losses(features, label), "all": F.cross_entropy(logits, label)}


class OnSeveral(Method):
    """Shared factors and a bias of each data set's; told by "dataset" whose classes it is about."""

    trained_modules = ("shared",)
    sees = ("other_data_sets",)

    def __init__(self, encoders, classes):
        super().__init__(encoders, classes)
        every = (classes, *classes.further)
        self.shared = nn.ParameterDict(
            {
                "scale": nn.Parameter(torch.ones(encoders.embed_dim)),
                "bias": nn.Parameter(torch.zeros(3, encoders.embed_dim)),
            }
        )
        self.hand = [encoders.text.encode(own.sentences()) for own in every]

    @classmethod
    def from_cfg(cls, cfg, encoders, classes):
        return cls(encoders, classes)

    def features(self, image, dataset=None, **known):
        number = 0 if dataset is None else int(dataset)
        text = self.shared["scale"] * self.hand[number] + self.shared["bias"][number]
        return Features(self.encode_image(image), text)


class Learner(Base):
    teacher_key = "TRAINER.LEARNER.TEACHER"

    def losses(self, features, label):
        target = features.more["teacher"].softmax(dim=-1)
        learned = F.cross_entropy(self.itm_logits(features), target)
        return {**super().losses(features, label), "learned": learned}


def trainer_of(method, node="COOP"):
    contents = {"method_class": method, "config_node": node, "__module__": __name__}
    return type(f"Of{method.__name__}", (PromptTrainer,), contents)


METHODS = (Caching, CachingAlone, Remembering, TwoViews, InTheBlocks, InTheLastBlock, Reading)
METHODS += (OnSeveral, Alternating, TwoOptimizers, WithOthers)


@pytest.fixture(autouse=True)
def registered(monkeypatch):
    feature_cache._memory.clear()
    Caching.calls.clear()

    def extend(cfg):
        cfg.TRAINER.LEARNER = CfgNode()
        cfg.TRAINER.LEARNER.TEACHER = ""
        cfg.TRAINER.LEARNER.PREC = "fp32"

    monkeypatch.setattr(defaults, "_EXTENSIONS", [*defaults._EXTENSIONS, extend])
    own = [trainer_of(method) for method in METHODS] + [trainer_of(Learner, "LEARNER")]
    for trainer in [*own, *(twin_of(trainer) for trainer in own)]:
        monkeypatch.setitem(TRAINER_REGISTRY._objects, trainer.__name__, trainer)


@pytest.fixture
def root(picture_root, tmp_path):
    ignored = shutil.ignore_patterns(".cache")
    return shutil.copytree(picture_root, tmp_path / "root", ignore=ignored)


@pytest.fixture
def run(command, tmp_path, root):
    """run(trainer, output, …) → the state dict saved, the losses and the result."""

    def go(name, output="run", *extra, **options):
        folder = tmp_path / output
        options = {"INPUT__TRANSFORMS": AUGMENTED, **options}
        train.main(command(name, "--root", str(root), *extra, output=folder, **options))
        lines = (folder / "metrics.jsonl").read_text().splitlines()
        result = json.loads((folder / "result.json").read_text())
        return saved(folder)["state_dict"], [json.loads(x)["losses"] for x in lines], result

    return go


def saved(folder, name=None, epoch=2):
    name = name or next(p.name for p in folder.iterdir() if "rompt" in p.name and p.is_dir())
    return load_checkpoint(folder / name / f"model.pth.tar-{epoch}")


def with_seeds(words, *seeds):
    at = words.index("--seed")
    return [*words[: at + 1], *map(str, seeds), *words[at + 2 :]]


def same(a, b, **tolerance):
    assert set(a) == set(b)
    for name in a:
        torch.testing.assert_close(a[name], b[name], **(tolerance or {"rtol": 0, "atol": 0}))


class Killed(Exception):
    pass


TOGETHER = ("OfRemembering", "OfTwoViews", "OfInTheLastBlock", "OfTwoOptimizers", "DePT_OfCaching")
ALL = (*TOGETHER, "OfReading", "OfOnSeveral", "OfAlternating")


@pytest.mark.parametrize("name", ALL)
def test_resumed_equals_uninterrupted(make_trainer, tmp_path, name):
    def build(output):
        return make_trainer(name, output=tmp_path / output, OPTIM__MAX_EPOCH=2)

    whole = build("whole")
    whole.train()
    killed = build("killed")
    step, calls = killed.forward_backward, []

    def dies(batch):
        calls.append(1)
        if len(calls) == killed.num_batches * 2:
            raise Killed
        return step(batch)

    killed.forward_backward = dies
    with pytest.raises(Killed):
        killed.train()
    looked = len(Caching.calls)
    resumed = build("killed")
    resumed.train()
    assert resumed.start_epoch == 1 and len(Caching.calls) == looked
    same(resumed.method.trained_state(), whole.method.trained_state())
    same(resumed.method.prepared_state(), whole.method.prepared_state())


@pytest.mark.parametrize("name", TOGETHER)
def test_several_seeds_at_once_equal_each_alone(command, tmp_path, name):
    train.main(with_seeds(command(name, output=tmp_path / "together"), 1, 2))
    for seed in (1, 2):
        train.main(with_seeds(command(name, output=tmp_path / f"alone{seed}"), seed))
        together = saved(tmp_path / "together" / f"seed{seed}")
        alone = saved(tmp_path / f"alone{seed}")
        same(together["state_dict"], alone["state_dict"], rtol=1e-4, atol=1e-5)
        same(together.get("prepared", {}), alone.get("prepared", {}), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", ["OfAlternating", "DePT_OfAlternating"])
def test_several_seeds_refuse_a_step_of_a_methods_own(command, name):
    with pytest.raises(UserError, match=rf"{name} has a step of its own \(Alternating\.own_step\)"):
        train.main(with_seeds(command(name), 1, 2))


# prepare


def test_what_was_prepared_is_tested_on_its_own_classes_and_refused_on_others(
    run, make_trainer, tmp_path
):
    _, _, result = run("OfCaching")
    assert Caching.calls == [10]
    again = make_trainer("OfCaching", output=tmp_path / "again", INPUT__TRANSFORMS=AUGMENTED)
    assert not again.method.means.any()
    again.load_model(tmp_path / "run")
    assert again.test() == pytest.approx(result["accuracy"])
    assert Caching.calls == [10]
    same(again.method.prepared_state(), saved(tmp_path / "run")["prepared"])
    state = {"means": torch.ones(3, 32), "noise": torch.ones(32)}
    with pytest.raises(UserError, match="other classes"):
        again.method.load_prepared(state, ["a", "b", "c"])
    with pytest.raises(UserError, match="another method"):
        again.method.load_prepared({"means": state["means"]}, again.method.classes.keys)


def test_a_method_that_only_prepares_is_saved_and_tested(command, tmp_path):
    train.main(command("OfCachingAlone"))
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert set(saved(tmp_path / "run")["prepared"]) == {"means", "noise"}
    folder = str(tmp_path / "run")
    extra = ("--eval-only", "--model-dir", folder)
    train.main(command("OfCachingAlone", *extra, output=tmp_path / "tested"))
    tested = json.loads((tmp_path / "tested" / "result.json").read_text())
    assert tested["accuracy"] == result["accuracy"] and len(Caching.calls) == 1


def test_seeds_that_prepare_other_sizes_are_refused_together(command, monkeypatch):
    def prepare(self, data):
        self.noise = torch.zeros(data.cfg.SEED, 1)

    monkeypatch.setattr(Caching, "prepare", prepare)
    with pytest.raises(UserError, match="OfCaching holds noise of several sizes"):
        train.main(with_seeds(command("OfCaching"), 1, 2))


def test_weights_to_start_from_go_before_what_is_prepared(run, make_trainer, tmp_path):
    state, _, _ = run("OfRemembering", "first")
    file = tmp_path / "first" / "prompt_learner" / "model.pth.tar-2"
    trainer = make_trainer("OfRemembering", MODEL__INIT_WEIGHTS=file)
    trainer.before_train()
    same(trainer.method.trained_state(), state)
    run("OfCaching", "second", DATASET__NUM_SHOTS=1)
    file = tmp_path / "second" / "prompt_learner" / "model.pth.tar-2"
    trainer = make_trainer("OfCaching", MODEL__INIT_WEIGHTS=file, output=tmp_path / "x")
    trainer.before_train()
    old = saved(tmp_path / "second")
    same(trainer.method.trained_state(), old["state_dict"])
    assert not torch.equal(trainer.method.means, old["prepared"]["means"])


def test_preparing_draws_nothing_of_the_training(run, monkeypatch):
    plain = run("OfCaching", "a")[0]
    prepare = Caching.prepare

    def draws_more(self, data):
        prepare(self, data)
        torch.randn(7)

    monkeypatch.setattr(Caching, "prepare", draws_more)
    same(run("OfCaching", "b")[0], plain)


def test_training_images_come_in_order_and_their_features_from_the_cache(make_trainer, monkeypatch):
    seen = []
    monkeypatch.setattr(Caching, "prepare", lambda self, data: seen.append(data))
    trainer = make_trainer("OfCaching", DATALOADER__FEATURE_CACHE="")
    trainer.before_train()
    (data,) = seen
    by_hand = torch.cat([trainer.encode_views(image) for image in data.images()])
    torch.testing.assert_close(data.features(), by_hand, rtol=1e-5, atol=1e-6)
    assert data.labels.tolist() == [item.label for item in data.dataset.train_x]
    assert len(data) == len(by_hand) == 10


def test_rows_of_training_images_are_as_many_as_the_checkpoints(run, make_trainer, tmp_path):
    state, _, _ = run("OfRemembering", OPTIM__MAX_EPOCH=2)
    assert len(state["memory.rows"]) == 10
    other = make_trainer("OfRemembering", output=tmp_path / "other", DATASET__NUM_SHOTS=1)
    assert len(other.method.memory["rows"]) == 5
    other.load_model(tmp_path / "run")
    same(other.method.trained_state(), state)


# views


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


# features at a block


@pytest.fixture
def count_encoded(monkeypatch):
    seen, embed = [], ImageEncoder._pieces

    def counting(self, image):
        seen.append(len(image))
        return embed(self, image)

    monkeypatch.setattr(ImageEncoder, "_pieces", counting)
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


# steps and optimizers


@pytest.mark.parametrize("name", ["OfAlternating", "OfTwoOptimizers", "DePT_OfAlternating"])
def test_a_methods_own_optimizers_train_what_is_theirs(make_trainer, tmp_path, name):
    trainer = make_trainer(name, output=tmp_path / "run")
    main, own = (trainer._optims[key] for key in (trainer.model_name, "of_image"))
    held = [[p for group in optim.param_groups for p in group["params"]] for optim in (main, own)]
    trained = trainer.method.trained()
    assert [id(p) for p in held[1]] == [id(trained["of_image.weight"])]
    assert {id(p) for part in held for p in part} == {id(p) for p in trained.values()}
    before = trainer.method.trained_state()
    trainer.train()
    assert all(not torch.equal(p, before[key]) for key, p in trainer.method.trained().items())
    assert own.param_groups[0]["lr"] == pytest.approx(1e-3 / 4)


def test_a_step_of_its_own_is_the_one_written_by_hand(make_trainer):
    trainer = make_trainer("OfAlternating", OPTIM__MAX_EPOCH=1, OPTIM__WARMUP_EPOCH=-1)
    method, by_hand = trainer.method, make_trainer("OfAlternating").method
    trainer.set_model_mode("train")
    trainer.epoch, trainer.batch_idx, trainer.num_batches = 0, 0, 2
    batch = next(iter(trainer.train_loader_x))
    trainer.forward_backward(batch)
    first = torch.optim.SGD(
        by_hand.of_text.parameters(), lr=0.0035, momentum=0.9, weight_decay=5e-4
    )
    for optim in (first, by_hand.own_optimizers(None)["of_image"][0]):
        by_hand.zero_grad()
        loss = by_hand.losses(by_hand.features(batch["img"]), batch["label"])
        sum(loss.values()).backward()
        optim.step()
    same(by_hand.trained_state(), method.trained_state(), rtol=1e-6, atol=1e-7)


# further names, and what is seen


def test_other_names_come_by_declaration(make_trainer):
    options = {"DATASET__SUBSAMPLE_CLASSES": "base"}
    method = make_trainer("OfWithOthers", **options).method
    assert len(method.everyone) == 5 > len(method.classes.names)
    assert [*method.classes.names, *method.classes.others.values()] == (
        method.classes.with_others().names
    )
    torch.testing.assert_close(method.everyone[: len(method.hand)], unit(method.hand))
    assert not make_trainer("OfCaching", **options).method.classes.others
    assert Classes(["a"], ["k"]).with_others().names == ["a"]


def test_a_result_says_what_was_seen(run, make_trainer, monkeypatch):
    assert run("OfWithOthers", "a")[2]["sees"] == ["new_class_names"]
    assert run("DePT_OfWithOthers", "b")[2]["sees"] == ["new_class_names"]
    assert run("OfCaching", "c")[2]["sees"] == []
    monkeypatch.setattr(WithOthers, "sees", ("the_future",))
    with pytest.raises(UserError, match="the_future"):
        make_trainer("OfWithOthers")


# a teacher


@pytest.fixture
def teacher(run, tmp_path):
    run("CoOp", "teacher", OPTIM__LR=0.1, DATALOADER__FEATURE_CACHE="")
    feature_cache._memory.clear()
    return tmp_path / "teacher"


def test_a_teachers_logits_are_its_runs(run, teacher, make_trainer, tmp_path):
    options = {"TRAINER__LEARNER__TEACHER": teacher, "INPUT__TRANSFORMS": AUGMENTED}
    trainer = make_trainer("OfLearner", output=tmp_path / "x", **options)
    assert not any("context" in name for name, _ in trainer.method.named_parameters())
    batch = next(iter(trainer.train_loader_x))
    taught = trainer.method.train().features(batch["img"]).more["teacher"]
    its = trainer.method.teacher_run.run.logits(batch["img"])
    torch.testing.assert_close(taught, its)
    assert "teacher" not in trainer.method.eval().features(batch["img"]).more


@pytest.mark.parametrize("name", ["OfLearner", "DePT_OfLearner"])
def test_learning_from_a_teacher(run, teacher, tmp_path, name, monkeypatch):
    options = {"TRAINER__LEARNER__TEACHER": teacher}
    plain = run(name, "plain", **options, MODEL__FAST=False)
    first = run(name, "first", **options)
    asked = []
    monkeypatch.setattr(Teacher, "logits", lambda self, image: asked.append(1) or 1 / 0)
    feature_cache._memory.clear()
    again = run(name, "again", **options)
    assert not asked and first[1] == again[1]
    same(first[0], again[0])
    for losses, others in zip(plain[1], first[1], strict=True):
        assert losses == pytest.approx(others, rel=1e-4) and losses["learned"] > 0
    assert first[2]["sees"] == ["teacher"]
    sha = first[2]["identity"]["files"]["TRAINER.LEARNER.TEACHER"]
    assert len(sha) == 64
    assert "TRAINER.LEARNER.TEACHER" not in first[2]["identity"]["settings"]
    assert all("ctx" not in key for key in first[0])


def test_a_trained_learner_is_tested_without_its_teacher(run, teacher, command, tmp_path):
    from tuning.run import open_run

    its = digest_of(open_run(teacher))
    _, _, result = run("OfLearner", TRAINER__LEARNER__TEACHER=teacher)
    assert result["identity"]["files"]["TRAINER.LEARNER.TEACHER"] == its
    shutil.rmtree(teacher)
    extra = ("--eval-only", "--model-dir", str(tmp_path / "run"))
    train.main(command("OfLearner", *extra, output=tmp_path / "t", INPUT__TRANSFORMS=AUGMENTED))
    tested = json.loads((tmp_path / "t" / "result.json").read_text())
    assert tested["accuracy"] == pytest.approx(result["accuracy"], abs=20)
    assert open_run(tmp_path / "run").method().eval() is not None


def test_several_seeds_learn_from_one_teacher(command, teacher, tmp_path):
    options = {"TRAINER__LEARNER__TEACHER": teacher, "INPUT__TRANSFORMS": AUGMENTED}
    train.main(with_seeds(command("OfLearner", output=tmp_path / "both", **options), 1, 2))
    for seed in (1, 2):
        alone = tmp_path / f"alone{seed}"
        train.main(with_seeds(command("OfLearner", output=alone, **options), seed))
        together = saved(tmp_path / "both" / f"seed{seed}")["state_dict"]
        same(together, saved(alone)["state_dict"], rtol=1e-4, atol=1e-5)


def test_a_teacher_that_does_not_fit_is_refused(make_trainer, teacher, tmp_path, command):
    with pytest.raises(UserError, match=r"TRAINER\.LEARNER\.TEACHER is empty"):
        make_trainer("OfLearner", TRAINER__LEARNER__TEACHER="").train()
    options = {"TRAINER__LEARNER__TEACHER": teacher, "INPUT__PIXEL_MEAN": "[0.4, 0.4, 0.4]"}
    with pytest.raises(UserError, match=r"images of INPUT\.PIXEL_MEAN"):
        make_trainer("OfLearner", output=tmp_path / "other", **options).train()
    options = {"TRAINER__LEARNER__TEACHER": tmp_path / "nowhere"}
    with pytest.raises(UserError, match="is no run of"):
        make_trainer("OfLearner", output=tmp_path / "none", **options).train()


# several data sets


@pytest.fixture
def further(tmp_path):
    """Config files of two further data sets, of two and of three classes."""
    files = []
    for number, count in enumerate((2, 3)):
        root = tmp_path / f"set{number}"
        for c in range(count):
            (root / f"thing {number}{c}").mkdir(parents=True)
            for i in range(10):
                pixels = np.random.default_rng([number, c, i]).integers(0, 256, (40, 40, 3))
                image = Image.fromarray(pixels.astype(np.uint8))
                image.save(root / f"thing {number}{c}" / f"{i}.png")
        files.append(tmp_path / f"set{number}.yaml")
        files[-1].write_text(f"DATASET:\n  NAME: ImageFolder\n  ROOT: {root}\n")
    return {"DATASET__FURTHER": str(tuple(map(str, files)))}


def test_several_data_sets_are_trained_on_in_turn(make_trainer, further):
    trainer = make_trainer("OfOnSeveral", DATALOADER__TRAIN_X__BATCH_SIZE=2, **further)
    assert [len(c.names) for c in trainer.method.classes.further] == [2, 3]
    trainer.begin_epoch()
    batches = list(trainer.training_batches())
    numbers = [int(batch["dataset"]) for batch in batches]
    # 10, 4 and 6 images.
    assert numbers == [0, 1, 2, 0, 1, 2, 0, 2, 0, 0] and trainer.batches_per_epoch == 10
    for number, most in enumerate((5, 2, 3)):
        own = [b for b in batches if int(b["dataset"]) == number]
        assert {int(y) for b in own for y in b["label"]} == set(range(most))
    trainer.train()
    bias = trainer.method.trained()["shared.bias"]
    assert (bias.abs().amax(dim=1) > 0).all()


def test_several_data_sets_are_part_of_a_run(run, further, tmp_path, command):
    first = run("OfOnSeveral", "first", **further)
    feature_cache._memory.clear()
    again = run("OfOnSeveral", "again", **further)
    same(first[0], again[0])
    assert first[2]["sees"] == ["other_data_sets"]
    files = first[2]["identity"]["files"]
    assert len([name for name in files if name.startswith("DATASET.FURTHER")]) == 2
    image = next((tmp_path / "set0").rglob("*.png"))
    for other in image.parent.glob("*.png"):
        Image.new("RGB", (40, 40)).save(other)
    with pytest.raises(UserError, match=r"another file for DATASET\.FURTHER"):
        run("OfOnSeveral", "first", **further)
    with pytest.raises(UserError, match="OfOnSeveral takes several data sets"):
        train.main(with_seeds(command("OfOnSeveral", output=tmp_path / "s", **further), 1, 2))


def test_who_trains_on_one_data_set_says_so(make_trainer, further):
    with pytest.raises(UserError, match="CoOp trains on one data set"):
        make_trainer("CoOp", **further)
    with pytest.raises(UserError, match="one data set's classes"):
        make_trainer("DePT_OfOnSeveral", **further)
    with pytest.raises(UserError, match="no config file nowhere"):
        make_trainer("OfOnSeveral", DATASET__FURTHER="('nowhere.yaml',)")
