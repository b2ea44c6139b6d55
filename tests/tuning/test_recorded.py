"""Steps from a record: the same bits, and where there can be none the steps as they are."""

import json
import random
from itertools import islice

import pytest
import torch
from torch import nn

import train
from tests.registered import every_trainer, some_twins, trains
from tuning import operations, recorded
from tuning.held import Held
from tuning.operations import CannotRecord, Operations, Program
from tuning.recorded import RecordedStep

NAMES = [name for name in some_twins(every_trainer()) if trains(name)]


@pytest.fixture(autouse=True)
def soon(monkeypatch):
    """The second step is recorded already."""
    monkeypatch.setattr(recorded, "_BEFORE", 1)


class Toy(nn.Module):
    """Losses of w and a frozen m."""

    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.tensor([[2.0, 1.0], [0.5, -1.0]]))
        self.register_buffer("m", torch.tensor([[1.0, 2.0], [3.0, 4.0]]))
        self.factor = 1.0

    def forward(self, x):
        scaled = (self.m.t() @ self.m).softmax(dim=1) * self.factor
        return (x @ (self.w.t() @ scaled)).square().mean()


class Made:
    """A toy's recorded step, how often it was computed as it is, and its losses and gradients."""

    def __init__(self, toy=None, fixed=tuple, records=None):
        self.toy, self.computed = toy or Toy(), 0
        held = lambda: Held([("", self.toy)])  # noqa: E731
        self.step = RecordedStep(self.compute, [self.toy.w], held, fixed, records)

    def compute(self, inputs):
        self.computed += 1
        return self.plain(inputs)

    def plain(self, inputs):
        self.toy.w.grad = None
        loss = self.toy(**inputs)
        loss.backward()
        return {"loss": loss.detach()}

    def check(self, steps=6, shape=(3, 2), **more):
        """Make steps, each equal to the plain one to the bit."""
        for _ in range(steps):
            inputs = {"x": torch.randn(shape), **more}
            found = self.step(inputs)["loss"], self.toy.w.grad
            wanted = self.plain(inputs)["loss"], self.toy.w.grad
            assert torch.equal(found[0], wanted[0]) and torch.equal(found[1], wanted[1])
            with torch.no_grad():
                self.toy.w -= 0.01 * self.toy.w.grad
        return self.step.records


def test_the_same_bits_without_the_computation():
    made = Made()
    made.check(10)
    assert made.computed == 1 + 1 + recorded._CHECKED  # before, recorded, compared


def test_another_shape_has_a_record_of_its_own():
    made = Made()
    made.check()
    made.check(shape=(4, 2))
    records = made.check()
    assert len(records.of) == 2 and all(record.program for record in records.of.values())


def test_what_hangs_on_nothing_that_changes_is_computed_once():
    made = Made()
    records = made.check()
    (record,) = records.of.values()
    code = record.program._forward.__self__.code
    assert "softmax" not in code and "mm" in code


@pytest.mark.parametrize("change", ["factor", "buffer", "in place", "rests"])
def test_another_value_is_recorded_anew(change):
    made = Made()
    made.check()
    toy = made.toy
    if change == "factor":
        toy.factor = 0.5
    elif change == "buffer":
        toy.m = torch.ones(2, 2)
    elif change == "in place":
        toy.m.mul_(2)
    else:
        toy.more = nn.Parameter(torch.ones(1), requires_grad=False)
    before = made.computed
    made.check()
    assert made.computed == before + 1 + 1 + recorded._CHECKED


def test_a_constant_that_changes_outside_of_the_method():
    made, tower = Made(), torch.ones(2, 2)
    forward = made.toy.forward
    made.toy.forward = None
    object.__setattr__(made, "plain", lambda inputs: _with(made, forward, tower, inputs))
    made.check()
    tower.mul_(3)
    made.check()


def _with(made, forward, tower, inputs):
    made.toy.w.grad = None
    loss = forward(**inputs) * (tower @ tower).sum()
    loss.backward()
    return {"loss": loss.detach()}


def test_parameters_elsewhere_are_taken_up():
    made = Made()
    made.check()
    made.toy.w.data = made.toy.w.data.clone()
    made.check()
    other = Made(Toy(), records=made.step.records)
    other.step.held = made.step.held  # as the stack of the next epoch
    other.toy.factor = made.toy.factor
    before = other.computed
    other.check()
    assert other.computed <= before + 1 + recorded._CHECKED


def test_anomalies_are_looked_for_in_the_step_as_it_is():
    made = Made()
    made.check()
    before = made.computed
    with torch.autograd.set_detect_anomaly(True):
        made.check(2)
    assert made.computed == before + 2


class Counting(Toy):
    def forward(self, x):
        self.factor += 0.1
        return super().forward(x)


class Random(Toy):
    def forward(self, x):
        return super().forward(x + torch.rand_like(x))


class Looking(Toy):
    def forward(self, x):
        return super().forward(x) * (2 if x.sum() > 0 else 1)


class Listing(Toy):
    def forward(self, x):
        return super().forward(x) * x.tolist()[0][0]


class Masked(Toy):
    def forward(self, x):
        return super().forward(x) + x[x > 0].sum()


class Moving(Toy):
    """Changes in place what isn't a module's."""

    seen = torch.zeros(2)

    def forward(self, x):
        self.seen.add_(x.detach().mean(dim=0))
        return super().forward(x) + self.seen.sum()


class Large(Toy):
    def forward(self, x):
        return super().forward(x) + sum(x.sum() * 0 for _ in range(100))


REFUSED = {
    Random: "random",
    Looking: "_local_scalar_dense",
    Listing: "on the host",
    Masked: "index",
    Moving: "didn't make",
    Large: "large",
}


@pytest.mark.parametrize("kind", REFUSED, ids=lambda kind: kind.__name__)
def test_where_there_is_no_record_steps_are_as_they_are(kind, monkeypatch):
    if kind is Large:
        monkeypatch.setattr(operations, "LARGEST", 100)
    made = Made(kind())
    for _ in range(5):
        made.step({"x": torch.ones(3, 2)})
    assert made.computed == 5 and not made.step.records.works
    assert REFUSED[kind] in made.step.records.why


def test_what_changes_at_every_step_is_never_recorded():
    made = Made(Counting())
    for _ in range(5):
        made.step({"x": torch.ones(3, 2)})
    assert made.computed == 5 and made.toy.factor == pytest.approx(1.5)


class Python(Toy):
    """Takes from elsewhere what no record can know."""

    def forward(self, x):
        return super().forward(x) * random.random()


def test_other_numbers_are_noticed(capsys):
    made = Made(Python())
    for _ in range(4):
        made.step({"x": torch.ones(3, 2)})
    assert made.computed == 4 and "going on without" in capsys.readouterr().out
    assert not made.step.records.works


class Chosen(Toy):
    def forward(self, x, dataset):
        return super().forward(x) * (1 + int(dataset))


def test_a_value_known_on_the_host_has_a_record_of_its_own():
    made = Made(Chosen())
    for dataset in (0, 1, 0, 1):
        made.check(dataset=torch.tensor(dataset))
    assert len(made.step.records.of) == 2 and made.step.records.works


def test_a_gradient_that_is_always_the_same_is_no_constant_of_the_record():
    class Linear(Toy):
        def forward(self, x):
            return (self.w * self.m).sum() + x.sum()

    made = Made(Linear())
    for _ in range(6):
        made.step({"x": torch.ones(3, 2)})
        made.toy.w.grad.mul_(0.5)  # as clipping does
    made.step({"x": torch.ones(3, 2)})
    assert torch.equal(made.toy.w.grad, made.toy.m)


def test_inputs_that_are_parts_of_others():
    made, images = Made(), torch.randn(64, 2)
    for i in range(6):
        x = images[8 * i : 8 * i + 8]
        found = made.step({"x": x})["loss"]
        assert torch.equal(found, made.plain({"x": x})["loss"])
    assert made.computed == 4


def test_a_result_that_nothing_made_is_refused():
    x = torch.ones(2)
    with Operations() as known:
        pass
    with pytest.raises(CannotRecord):
        Program(known, [], 0, [x], [torch.zeros(1)])


@pytest.mark.parametrize("name", NAMES)
def test_every_trainer(make_trainer, name):
    trainer = make_trainer(name, DATALOADER__FEATURE_CACHE="")
    if trainer.own_step():
        pytest.skip("a step of its own")
    trainer.before_train()
    trainer.begin_epoch()
    trainer.before_epoch()
    trainer.set_model_mode("train")
    batches = [trainer.step_inputs(batch) for batch in islice(trainer.training_batches(), 2)]
    step = trainer.training_step
    for batch in (*batches, *batches):
        step.gradients(batch)  # computed, recorded and compared, see `_checked`
    (record,) = step.gradients.records.of.values()
    assert record.program is not None and record.to_check == 0, step.gradients.records.why
    losses = step.gradients(batches[1])
    gradients = [p.grad for p in trainer.method.trained().values()]
    wanted = step.compute_gradients(batches[1])
    assert losses.keys() == wanted.keys()
    assert all(torch.equal(losses[key], wanted[key]) for key in wanted)
    for found, parameter in zip(gradients, trainer.method.trained().values(), strict=True):
        assert found is parameter.grad is None or torch.equal(found, parameter.grad)


@pytest.mark.parametrize("seeds", ["1", "1 2"])
@pytest.mark.parametrize("name", ["DePT_CoOp", "StablePT"])
def test_whole_runs_are_the_same_to_the_digit(command, tmp_path, name, seeds, monkeypatch):
    found = []
    for way in ("recorded", "as they are"):
        if way != "recorded":
            monkeypatch.setattr(recorded, "_BEFORE", 10**9)
        words = command(name, output=tmp_path / way, OPTIM__MAX_EPOCH=4)
        at = words.index("--seed")
        train.main([*words[: at + 1], *seeds.split(), *words[at + 2 :]])
        files = sorted((tmp_path / way).rglob("metrics.jsonl"))
        lines = [json.loads(x) for file in files for x in file.read_text().splitlines()]
        states = [
            torch.load(file, weights_only=True)["state_dict"]
            for file in sorted((tmp_path / way).rglob("model.pth.tar-4"))
        ]
        found.append(([line["losses"] for line in lines], states))
    assert found[0][0] == found[1][0]
    for a, b in zip(found[0][1], found[1][1], strict=True):
        assert all(torch.equal(a[key], b[key]) for key in b)
