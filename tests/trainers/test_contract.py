"""What every registered trainer owes: it is tested here the moment it is registered."""

import json

import pytest
import torch

import train
from clip.clip import load_model
from clip.prompting import Encoders
from dassl.engine import TRAINER_REGISTRY
from dassl.utils import UserError
from tests.conftest import leave_zeros
from tests.registered import every_trainer, some_twins, trains

ALL = every_trainer()
TRAINED = [name for name in ALL if trains(name)]


def batch(trainer):
    return next(iter(trainer.train_loader_x))


@pytest.mark.parametrize("name", TRAINED)
def test_gradients_reach_exactly_what_is_declared(make_trainer, name):
    trainer = make_trainer(name)
    if trainer.prepares():
        trainer.before_train()
    method = trainer.method.train()
    leave_zeros(method)
    inputs = trainer.step_inputs(batch(trainer))
    label = inputs.pop("label")
    sum(method.losses(method.features(**inputs), label).values()).backward()
    declared = {id(p) for p in method.trained().values()}
    for parameter_name, parameter in method.named_parameters():
        if id(parameter) in declared:
            assert parameter.grad is not None, f"No gradient for {parameter_name}"
            assert parameter.grad.abs().max() > 0, f"Zero gradient for {parameter_name}"
        else:
            assert parameter.grad is None, f"Gradient for frozen {parameter_name}"
    groups = [id(p) for g in method.param_groups(1.0) for p in g["params"]]
    assert sorted(groups) == sorted(declared)


@pytest.mark.parametrize("name", TRAINED)
def test_run_saves_what_is_declared_and_loads_it(make_trainer, command, tmp_path, name):
    train.main(command(name))
    file = next((tmp_path / "run").glob("*/model.pth.tar-2"))
    checkpoint = torch.load(file, weights_only=True)
    trainer = make_trainer(name, output=tmp_path / "eval")
    assert set(checkpoint["state_dict"]) == set(trainer.method.trained())
    trainer.load_model(str(tmp_path / "run"), epoch=2)
    for key, parameter in trainer.method.trained().items():
        torch.testing.assert_close(parameter.data, checkpoint["state_dict"][key], rtol=0, atol=0)
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert trainer.test() == pytest.approx(result["accuracy"])

    first = next(iter(checkpoint["state_dict"]))
    for broken in ({}, {first: torch.zeros(1, 2, 3, 4, 5)}, {"surprise": torch.zeros(1)}):
        state = {**checkpoint["state_dict"], **broken}
        if not broken:
            del state[first]
        with pytest.raises(UserError):
            trainer.method.load_trained(state, checkpoint["class_keys"])


class Killed(Exception):
    pass


@pytest.mark.parametrize("name", some_twins(TRAINED))
def test_resumed_equals_uninterrupted(make_trainer, tmp_path, name):
    def run(output):
        return make_trainer(name, output=tmp_path / output, OPTIM__MAX_EPOCH=3)

    whole = run("whole")
    whole.train()
    killed = run("killed")
    step, calls = killed.forward_backward, []

    def dies(batch):
        calls.append(1)
        if len(calls) == killed.num_batches * 2:  # in the middle of the second epoch's end
            raise Killed
        return step(batch)

    killed.forward_backward = dies
    with pytest.raises(Killed):
        killed.train()
    resumed = run("killed")
    resumed.train()
    assert resumed.start_epoch == 1
    for key, value in whole.method.trained_state().items():
        torch.testing.assert_close(resumed.method.trained_state()[key], value, rtol=0, atol=0)


@pytest.mark.parametrize("name", ALL)
def test_permuting_classes_permutes_logits(make_trainer, name):
    from tuning.method import Classes

    trainer = make_trainer(name)
    method = trainer.method.eval()
    order = [3, 0, 4, 2, 1]
    classes = method.classes
    permuted_classes = Classes(
        [classes.names[c] for c in order], [classes.keys[c] for c in order], classes.template
    )
    permuted = trainer.build_method(trainer.cfg, method.encoders, permuted_classes).eval()
    permuted.load_trained(method.trained_state(), classes.keys)
    permuted.load_prepared(method.prepared_state(), classes.keys)
    image = trainer.step_inputs(batch(trainer))["image"]
    with torch.no_grad():
        logits = method.logits(method.features(image))
        torch.testing.assert_close(
            permuted.logits(permuted.features(image)), logits[:, order], rtol=1e-4, atol=1e-4
        )


@pytest.mark.parametrize("name", ALL)
def test_batch_splits_change_no_logit(make_trainer, name):
    trainer = make_trainer(name)
    method = trainer.method.eval()
    image = trainer.step_inputs(batch(trainer))["image"]
    with torch.no_grad():
        whole = method.logits(method.features(image))
        parts = [method.logits(method.features(part)) for part in image.split([1, len(image) - 1])]
    torch.testing.assert_close(torch.cat(parts), whole, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", some_twins(ALL))
def test_fast_and_plain_encoders_give_the_same_losses_and_gradients(make_trainer, name):
    trainer = make_trainer(name)
    exact = load_model(trainer.cfg.MODEL.BACKBONE.NAME)[0].double()
    inputs = trainer.step_inputs(batch(trainer))
    label = inputs.pop("label")
    inputs = {name: value.double() for name, value in inputs.items()}
    results = []
    for fast in (True, False):
        encoders = Encoders(exact, fast)
        method = trainer.build_method(trainer.cfg, encoders, trainer.method.classes)
        method = method.double().freeze().train()
        method.load_trained(trainer.method.trained_state(), method.classes.keys)
        features = method.features(**inputs)
        losses = method.losses(features, label)
        leaves = list(method.trained().values())
        grads = torch.autograd.grad(sum(losses.values()), leaves) if leaves else []
        results.append([*losses.values(), method.logits(features), *grads])
    for fast, plain in zip(*results, strict=True):
        assert (fast - plain).abs().max() <= 1e-10 * max(1, plain.abs().max())


@pytest.mark.parametrize("name", some_twins(ALL))
@pytest.mark.parametrize("precision", ["fp16", "bf16", "amp"])
def test_every_precision_trains_a_step(make_trainer, capsys, name, precision):
    node = TRAINER_REGISTRY.get(name).config_node
    # At the warm-up's rate a clipped gradient may be lost in a weight's rounding.
    options = {f"TRAINER__{node}__PREC": precision, "OPTIM__WARMUP_EPOCH": 0}
    trainer = make_trainer(name, **options)
    said = f"TRAINER.{node}.PREC: {precision} needs a GPU" in capsys.readouterr().out
    assert said == (trainer.device.type == "cpu" and precision != "bf16")
    if not trainer.method.trained():
        image = trainer.step_inputs(batch(trainer))["image"]
        assert trainer.model_inference(image).isfinite().all()
        return
    leave_zeros(trainer.method)
    trainer.before_train()
    trainer.epoch, trainer.batch_idx, trainer.num_batches = 0, 0, 2
    before = trainer.method.trained_state()
    moved = set()
    for _ in range(10):  # some move at every tenth step
        summary = trainer.forward_backward(batch(trainer))
        assert torch.isfinite(torch.as_tensor(summary["loss"]))
        state = trainer.method.trained_state()
        moved |= {key for key, value in state.items() if not torch.equal(value, before[key])}
        if moved == set(before):
            break
    assert moved == set(before), f"{set(before) - moved} did not move"
    assert {value.dtype for value in state.values()} == {torch.float32}
