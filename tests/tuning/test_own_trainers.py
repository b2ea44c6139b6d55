"""Methods and trainers of other shapes than ours: what the trainer promises holds for them too."""

import json

import pytest
import torch
from torch import nn

import train
from dassl.engine import TRAINER_REGISTRY
from dassl.utils import UserError, load_checkpoint
from tuning.method import Method
from tuning.prompts import starting_context
from tuning.trainer import PromptTrainer


class TwoAdapters(Method):
    """A linear map behind each tower, their parameters of one name, and a context before one."""

    trained_modules = ("prompt", "of_text", "of_image")

    def __init__(self, encoders, classes, ctx):
        super().__init__(encoders, classes)
        self.prompt = nn.ParameterDict({"ctx": nn.Parameter(ctx)})
        self.of_text = nn.Linear(encoders.embed_dim, encoders.embed_dim, bias=False)
        self.of_image = nn.Linear(encoders.embed_dim, encoders.embed_dim, bias=False)
        self.layout = encoders.text.layout(classes.names, len(ctx))

    @classmethod
    def from_cfg(cls, cfg, encoders, classes):
        return cls(encoders, classes, starting_context(encoders, "", 2).vectors)

    def encode_text(self):
        e = self.encoders.text(self.layout, self.prompt["ctx"])
        return e + 0.1 * self.of_text(e)

    def encode_image(self, image):
        f = super().encode_image(image).float()
        return f + 0.1 * self.of_image(f)


class Adapting(PromptTrainer):
    method_class = TwoAdapters
    config_node = "COOP"


class InTwoStages(Adapting):
    """The context first, then the adapter of images, by an optimizer of its own."""

    def build_model(self):
        super().build_model()
        adapter = self.method.of_image
        self.second = torch.optim.AdamW(adapter.parameters(), lr=1e-3, weight_decay=0.0)
        self.register_model("of_image", adapter, self.second)

    def before_epoch(self):
        self.method.prompt.requires_grad_(self.epoch == 0)
        self.method.of_text.requires_grad_(self.epoch == 0)
        self.method.of_image.requires_grad_(self.epoch > 0)
        super().before_epoch()


class WithOwnStep(Adapting):
    def forward_backward(self, batch):
        return super().forward_backward(batch)


class TeacherMethod(TwoAdapters):
    """A teacher's context, in a buffer; one loss is the distance from it."""

    def __init__(self, encoders, classes, ctx):
        super().__init__(encoders, classes, ctx)
        self.register_buffer("teacher", ctx.clone())

    def losses(self, features, label):
        distance = (self.prompt["ctx"] - self.teacher).square().sum()
        return {**super().losses(features, label), "teach": distance}

    def follow(self):
        self.teacher.lerp_(self.prompt["ctx"].detach(), 0.5)


class FollowingInItsUpdate(PromptTrainer):
    method_class = TeacherMethod
    config_node = "COOP"

    def model_update(self, names=None):
        super().model_update(names)
        self.method.follow()


class FollowingInItsStep(PromptTrainer):
    method_class = TeacherMethod
    config_node = "COOP"

    def forward_backward(self, batch):
        losses = super().forward_backward(batch)
        self.method.follow()
        return losses


class FollowingInItsLossesMethod(TeacherMethod):
    def losses(self, features, label):
        self.follow()
        return super().losses(features, label)


class FollowingInItsLosses(PromptTrainer):
    method_class = FollowingInItsLossesMethod
    config_node = "COOP"


class RememberingMethod(TwoAdapters):
    """Keeps what it saw in an attribute."""

    def losses(self, features, label):
        self.memory = features.image.detach()
        return super().losses(features, label)


class RememberingTrainer(PromptTrainer):
    method_class = RememberingMethod
    config_node = "COOP"


class DrawnScaleMethod(TwoAdapters):
    """Draws a number of its own."""

    def __init__(self, encoders, classes, ctx):
        super().__init__(encoders, classes, ctx)
        self.drawn = torch.rand(()).item()


class DrawnScale(PromptTrainer):
    method_class = DrawnScaleMethod
    config_node = "COOP"


class WithUndeclaredModel(Adapting):
    """Registers a model that its method doesn't know."""

    def build_model(self):
        super().build_model()
        other = nn.Linear(2, 2)
        self.register_model("other", other, torch.optim.SGD(other.parameters(), lr=0.1))


OWN = (
    *(Adapting, InTwoStages, WithOwnStep, FollowingInItsUpdate, FollowingInItsStep),
    *(FollowingInItsLosses, RememberingTrainer, DrawnScale, WithUndeclaredModel),
)


@pytest.fixture(autouse=True)
def registered(monkeypatch):
    for trainer in OWN:
        monkeypatch.setitem(TRAINER_REGISTRY._objects, trainer.__name__, trainer)


def with_seeds(words, *seeds):
    at = words.index("--seed")
    return [*words[: at + 1], *map(str, seeds), *words[at + 2 :]]


def saved(folder, name="prompt_learner", epoch=2):
    return load_checkpoint(folder / name / f"model.pth.tar-{epoch}")["state_dict"]


def test_two_modules_with_one_parameter_name_are_both_trained_and_saved(
    make_trainer, command, tmp_path
):
    start = make_trainer("Adapting").method.trained_state()
    assert set(start) == {"prompt.ctx", "of_text.weight", "of_image.weight"}
    train.main(command("Adapting", OPTIM__LR=0.1))
    end = saved(tmp_path / "run")
    assert set(end) == set(start)
    assert all(not torch.equal(end[name], start[name]) for name in start)
    again = make_trainer("Adapting")
    again.load_model(tmp_path / "run")
    assert all(torch.equal(again.method.trained_state()[name], end[name]) for name in end)


@pytest.mark.parametrize("name", ["CoOp", "MaPLe", "DePT_CoCoOp", "DePT_PromptSRC"])
def test_names_without_modules_are_still_read(make_trainer, name):
    """As in checkpoints of before: `ctx` for `context.ctx`."""
    method = make_trainer(name).method
    state = {key: torch.randn_like(value) for key, value in method.trained_state().items()}
    old = {
        key if key.startswith("cat.") else key.partition(".")[2]: value
        for key, value in state.items()
    }
    assert set(method.load_trained(old, method.classes.keys)) == set(state)
    assert all(torch.equal(p, state[key]) for key, p in method.trained().items())


def test_a_name_that_two_modules_have_is_refused_without_its_module(make_trainer):
    method = make_trainer("Adapting").method
    state = method.trained_state()
    state["weight"] = state.pop("of_text.weight")
    with pytest.raises(UserError, match=r"it lacks of_text\.weight; it also has weight"):
        method.load_trained(state, method.classes.keys)


def test_a_second_optimizer_is_stepped_and_saved_as_its_own(make_trainer, command, tmp_path):
    start = make_trainer("InTwoStages").method.trained_state()
    train.main(command("InTwoStages", TRAIN__CHECKPOINT_FREQ=1))
    first = saved(tmp_path / "run", epoch=1)
    assert torch.equal(first["of_image.weight"], start["of_image.weight"])
    assert not torch.equal(first["prompt.ctx"], start["prompt.ctx"])
    end, adapter = saved(tmp_path / "run"), saved(tmp_path / "run", "of_image")
    assert set(adapter) == {"weight"}
    assert torch.equal(adapter["weight"], end["of_image.weight"])
    assert torch.equal(end["prompt.ctx"], first["prompt.ctx"])
    assert not torch.equal(end["of_image.weight"], start["of_image.weight"])
    own = load_checkpoint(tmp_path / "run" / "of_image" / "model.pth.tar-2")["optimizer"]
    assert own["state"][0]["step"] == 2  # of the second epoch's two batches; the first one rests
    again = make_trainer("InTwoStages")
    again.load_model(tmp_path / "run")
    assert torch.equal(again.method.of_image.weight, adapter["weight"])


def losses_of(folder):
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line)["losses"] for line in lines]


@pytest.mark.parametrize("name", ["InTwoStages", "FollowingInItsUpdate"])
def test_several_seeds_at_once_are_what_each_is_alone(command, tmp_path, name):
    """Whatever is called of a trainer's own: a second optimizer, a teacher that follows."""
    options = {"OPTIM__LR": 0.1, "OPTIM__WARMUP_EPOCH": -1, "OPTIM__MAX_EPOCH": 2}
    train.main(with_seeds(command(name, output=tmp_path / "both", **options), 1, 2))
    train.main(with_seeds(command(name, output=tmp_path / "alone", **options), 2))
    for a, b in zip(losses_of(tmp_path / "both/seed2"), losses_of(tmp_path / "alone"), strict=True):
        assert a == pytest.approx(b, rel=1e-4)
    for model in (p.parent.name for p in (tmp_path / "alone").glob("*/model.pth.tar-2")):
        both, alone = (saved(tmp_path / f, model) for f in ("both/seed2", "alone"))
        for key, value in alone.items():
            torch.testing.assert_close(both[key], value, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "name,complaint",
    [
        ("WithOwnStep", r"WithOwnStep has a step of its own \(forward_backward\): train its seeds"),
        (
            "FollowingInItsStep",
            r"has a step of its own \(forward_backward\): train its seeds apart",
        ),
        ("FollowingInItsLosses", "FollowingInItsLosses .*: train its seeds apart"),
        ("RememberingTrainer", "RememberingTrainer changes memory in its losses"),
        ("DrawnScale", "DrawnScale holds drawn, which differs"),
        ("WithUndeclaredModel", "WithUndeclaredModel registers other .*: train its seeds apart"),
    ],
)
def test_several_seeds_at_once_refuse_what_a_stack_cannot_do(command, name, complaint):
    with pytest.raises(UserError, match=complaint):
        train.main(with_seeds(command(name), 1, 2))


def test_a_step_of_its_own_leaves_nothing_in_which_runs_may_differ():
    """So protocols train them apart."""
    assert Adapting.may_differ == InTwoStages.may_differ == ("SEED",)
    assert WithOwnStep.may_differ == FollowingInItsStep.may_differ == ()


def test_several_seeds_leave_each_ones_curves(command, tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    def curves(folder):
        events = EventAccumulator(str(folder / "tensorboard"))
        events.Reload()
        return {
            tag: [(e.step, e.value) for e in events.Scalars(tag)]
            for tag in events.Tags()["scalars"]
        }

    options = {"TRAIN__PRINT_FREQ": 1}
    train.main(with_seeds(command("CoOp", output=tmp_path / "both", **options), 1, 2))
    train.main(with_seeds(command("CoOp", output=tmp_path / "alone", **options), 2))
    both, alone = curves(tmp_path / "both" / "seed2"), curves(tmp_path / "alone")
    assert {"train/loss", "train/loss_itm", "train/lr", "test/accuracy"} <= set(alone)
    assert set(both) == set(alone)
    for tag, points in alone.items():
        assert [step for step, _ in both[tag]] == [step for step, _ in points]
        values = [value for _, value in points]
        assert [value for _, value in both[tag]] == pytest.approx(values, rel=1e-4)
