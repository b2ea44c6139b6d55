"""Methods of the tests' own, one for each thing a method may declare; the frame knows none."""

import copy

import torch
import torch.nn.functional as F
from torch import nn

from clip.prompting import Branch, Read
from dassl.utils import load_checkpoint
from tuning.method import Features, Method, unit
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


class AnOriginal(Caching):
    """What it trains has a name that the original code's checkpoints know."""

    trained_modules = ("prompts",)

    def __init__(self, encoders, classes):
        super().__init__(encoders, classes)
        self.prompts = nn.ParameterDict({"w": nn.Parameter(torch.ones(encoders.embed_dim))})

    def encode_text(self):
        return super().encode_text() * self.prompts["w"]


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


class TokenAdapter(nn.Module):
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
        self.image_branches = nn.ModuleList(TokenAdapter(encoders.image.width) for _ in layers)
        self.text_branches = nn.ModuleList(TokenAdapter(encoders.text.width) for _ in layers)
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


class Following(Base):
    """An average of the map, which follows it after each step, gives the targets and the scores."""

    def __init__(self, encoders, classes):
        super().__init__(encoders, classes)
        self.slow = copy.deepcopy(self.of_text)

    def slow_logits(self, features):
        text = self.slow(self.hand.to(self.slow.weight.dtype))
        return self.itm_logits(Features(features.image, text))

    def losses(self, features, label):
        target = self.slow_logits(features).softmax(dim=-1)
        taught = F.cross_entropy(self.itm_logits(features), target)
        return {**super().losses(features, label), "taught": taught}

    def own_step(self, batch, own):
        losses = own.losses(batch)
        own.zero_grad()
        own.backward(sum(losses.values()))
        own.update()
        with torch.no_grad():
            self.slow.weight.lerp_(self.of_text.weight, 0.1)
        return losses

    def logits(self, features):
        return self.slow_logits(features)


class Banking(Base):
    """Keeps the last images' features, and wants the batch's to be unlike them."""

    def __init__(self, encoders, classes):
        super().__init__(encoders, classes)
        self.register_buffer("bank", torch.zeros(7, encoders.embed_dim))

    def losses(self, features, label):
        of_image = unit(self.of_text(features.image.to(self.of_text.weight.dtype)))
        unlike = (of_image @ self.bank.t()).square().mean()
        with torch.no_grad():
            self.bank = torch.cat([unit(features.image).to(self.bank), self.bank])[:7]
        return {**super().losses(features, label), "unlike": unlike}


class Normed(Base):
    """Running means that a trained module keeps by itself."""

    trained_modules = ("of_text", "norm")

    def __init__(self, encoders, classes):
        super().__init__(encoders, classes)
        self.norm = nn.BatchNorm1d(encoders.embed_dim)

    def encode_image(self, image):
        image = super().encode_image(image)
        return image + 0.1 * self.norm(image.to(self.norm.weight.dtype))


class PerClass(Base):
    """A buffer with a row per class that training changes, and that doesn't say so."""

    def __init__(self, encoders, classes):
        super().__init__(encoders, classes)
        self.register_buffer("seen", torch.zeros(len(classes.keys)))

    def losses(self, features, label):
        self.seen += F.one_hot(label, len(self.seen)).sum(dim=0)
        return super().losses(features, label)


def trainer_of(method, node="COOP"):
    contents = {"method_class": method, "config_node": node, "__module__": __name__}
    return type(f"Of{method.__name__}", (PromptTrainer,), contents)


METHODS = (Caching, CachingAlone, Remembering, TwoViews, InTheBlocks, InTheLastBlock, Reading)
METHODS += (OnSeveral, Alternating, TwoOptimizers, WithOthers)
METHODS += (Following, Banking, Normed, PerClass, AnOriginal)


OWN = [trainer_of(method) for method in METHODS] + [trainer_of(Learner, "LEARNER")]


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
