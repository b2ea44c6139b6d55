"""Replaying a step: what it takes in and gives out, on a stand-in for CUDA graphs."""

import pytest
import torch

from tuning.cuda_graphs import GraphedStep
from tuning.held import Held


def recorder(w, calls, wrong=False, fails=False):
    """Records as a CUDA graph does: fixed inputs, results and w's gradient written in place."""

    def record(call):
        if fails:
            raise RuntimeError("operation not permitted when stream is capturing\nmore")
        losses = call()
        gradient = w.grad

        def replay():
            calls.append(1)
            fresh = call()
            for name, value in fresh.items():
                losses[name].copy_(value + wrong)
            gradient.copy_(w.grad)

        return replay, losses

    return record


@pytest.fixture
def step():
    """A toy step: losses and gradients of w·x for inputs of any length."""
    w = torch.nn.Parameter(torch.tensor([2.0]))

    def compute(inputs):
        w.grad = None
        loss = (w * inputs["x"]).square().mean()
        loss.backward()
        return {"loss": loss.detach()}

    return w, compute


def expected(w, x):
    return (w.detach() * x).square().mean(), (2 * w.detach() * x.square()).mean()


def test_replays_on_new_inputs_and_parameters(step):
    w, compute = step
    calls = []
    graphed = GraphedStep(compute, [w], record=recorder(w, calls))
    for i, n in enumerate((3, 3, 5, 3, 5)):  # each length is recorded once
        x = torch.arange(n, dtype=torch.float32) + i
        loss = graphed({"x": x})["loss"]
        torch.testing.assert_close((loss, w.grad[0]), expected(w, x))
        with torch.no_grad():
            w -= 0.01 * w.grad
    assert len(graphed._graphs) == 2
    assert len(calls) == 5 + 2  # and once each to be checked


def test_losses_stay_what_they_were(step):
    w, compute = step
    graphed = GraphedStep(compute, [w], record=recorder(w, []))
    first = graphed({"x": torch.ones(3)})["loss"]
    graphed({"x": torch.full((3,), 7.0)})
    assert first == 4


@pytest.mark.parametrize("kind", ["wrong", "fails"])
def test_goes_on_eagerly_where_it_cannot_be_trusted(step, kind, capsys):
    w, compute = step
    graphed = GraphedStep(compute, [w], record=recorder(w, [], **{kind: True}))
    for i in range(3):
        x = torch.ones(3) * (i + 1)
        loss = graphed({"x": x})["loss"]
        torch.testing.assert_close((loss, w.grad[0]), expected(w, x))
    said = capsys.readouterr().out
    assert said.count("going on without") == 1
    reason = "other numbers" if kind == "wrong" else "stream is capturing)"
    assert reason in said


def test_a_diverging_run_is_not_the_graphs_fault(step):
    w, compute = step
    graphed = GraphedStep(compute, [w], record=recorder(w, []))
    assert graphed({"x": torch.full((2,), float("nan"))})["loss"].isnan()
    assert graphed.works


def test_another_value_held_is_recorded_anew(step):
    w, compute = step
    module, calls = torch.nn.Module(), []
    module.factor = 1.0
    held = lambda: Held([("", module)])  # noqa: E731
    graphed = GraphedStep(compute, [w], held, recorder(w, calls))
    graphed({"x": torch.ones(2)})
    module.factor = 2.0
    graphed({"x": torch.ones(2)})
    graphed({"x": torch.ones(2)})
    assert len(graphed._graphs) == 1 and len(calls) == 3 + 2


def test_data_sets_and_what_rests_have_graphs_of_their_own():
    w, calls = torch.nn.Parameter(torch.tensor([2.0])), []

    def compute(inputs):
        w.grad = None
        loss = (w * inputs["x"]).sum() * (1 + int(inputs["dataset"]))
        if w.requires_grad:
            loss.backward()
        return {"loss": loss.detach()}

    def record(call):
        losses, gradient = call(), w.grad

        def replay():
            calls.append(1)
            losses["loss"].copy_(call()["loss"])
            if gradient is not None:
                gradient.copy_(w.grad)

        return replay, losses

    graphed = GraphedStep(compute, [w], record=record)
    for dataset in (0, 1, 0, 1):
        found = graphed({"x": torch.ones(2), "dataset": torch.tensor(dataset)})
        assert found["loss"] == 4 * (1 + dataset) and w.grad == 2 * (1 + dataset)
    w.requires_grad_(False)
    graphed({"x": torch.ones(2), "dataset": torch.tensor(0)})
    assert w.grad is None and len(graphed._graphs) == 3 and graphed.works


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.parametrize("name", ["DePT_CoOp", "DePT_CoCoOp", "DePT_PromptSRC"])
@pytest.mark.parametrize("precision", ["fp32", "fp16", "amp"])
def test_on_a_gpu_replayed_steps_are_the_eager_ones(make_trainer, name, precision):
    from dassl.engine import TRAINER_REGISTRY

    node = TRAINER_REGISTRY.get(name).config_node
    states = []
    for graph in (True, False):
        options = {f"TRAINER__{node}__PREC": precision, "TRAIN__CUDA_GRAPH": graph}
        trainer = make_trainer(name, **options)
        trainer.train()
        if graph:
            assert trainer.training_step.gradients.works and trainer.training_step.gradients._graphs
        states.append(trainer.method.trained_state())
    for key, value in states[1].items():
        torch.testing.assert_close(states[0][key], value, rtol=1e-2, atol=1e-3)
