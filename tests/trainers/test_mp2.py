"""MP2 on CLIP, by the formulas at the head of its file, in fp64; its phases, and its library."""

import json

import pytest
import torch
import torch.nn.functional as F

import train
from clip import tokenize
from clip.clip import load_model
from clip.prompting import Encoders
from dassl.utils import UserError, load_checkpoint
from tests.tuning.small_methods import same, with_seeds
from trainers.mp2 import MP2, Library, Router
from tuning.method import unit

WORDS = "a photo of a"
SMALL = {"TRAINER__MP2__MODULES": 3, "TRAINER__MP2__RANK": 2}
TUNED = {**SMALL, "TRAINER__MP2__FACTORED": False}


@pytest.fixture
def exact(make_trainer):
    """exact(**options) → a moved method in fp64, CLIP in fp64, a step's inputs."""

    def build(moved=1.0, **options):
        trainer = make_trainer("MP2", **options)
        clip = load_model(trainer.cfg.MODEL.BACKBONE.NAME)[0].double()
        torch.manual_seed(3)
        method = MP2.build_method(trainer.cfg, Encoders(clip), trainer.method.classes)
        method = method.double().freeze().train()
        with torch.no_grad():
            for parameter in method.trained().values():
                parameter += 0.1 * moved * torch.randn_like(parameter)
        inputs = trainer.step_inputs(next(iter(trainer.train_loader_x)))
        inputs["image"] = torch.randn(len(inputs["label"]), 32)  # features: the tower is untouched
        floats = {k: v.double() if v.is_floating_point() else v for k, v in inputs.items()}
        return method, clip, floats

    return build


def loss_by_hand(clip, inputs, names, added):
    """Cross entropy of prompts whose first four tokens are the words' and what is added."""
    tokens = tokenize([f"{WORDS} {name.replace('_', ' ')}." for name in names])
    x = clip.token_embedding(tokens) + F.pad(added, (0, 0, 1, 77 - 5))
    x = clip.transformer((x + clip.positional_embedding).transpose(0, 1)).transpose(0, 1)
    ends = x[torch.arange(len(names)), tokens.argmax(-1)]
    text = clip.ln_final(ends) @ clip.text_projection
    logits = clip.logit_scale.exp() * unit(inputs["image"]) @ unit(text).t()
    return F.cross_entropy(logits, inputs["label"])


@pytest.mark.parametrize("task", [0, 2])
@pytest.mark.parametrize("factored", [True, False])
def test_loss_and_gradients(exact, further, factored, task):
    options = {**SMALL, **further, "TRAINER__MP2__TEMPERATURE": 0.7}
    method, clip, inputs = exact(TRAINER__MP2__FACTORED=factored, **options)
    names = (method.classes, *method.classes.further)[task].names
    inputs["label"] = torch.tensor([0, 1, len(names) - 1, 1])
    u, p = inputs["noise"], method.trained()
    assert u.shape == (3,) and p["router.rho"].shape == (3, 3)
    if factored:
        z, a = p["library.z"], p["library.a"]
        modules = [sum(z[k, r] * a[r] for r in range(2)).view(4, 64) for k in range(3)]
    else:
        modules = list(p["library.products"])
    gates = []
    for k in range(3):
        logit = (torch.log(u[k]) - torch.log(1 - u[k]) + p["router.rho"][task, k]) / 0.7
        gates.append(1 / (1 + torch.exp(-logit)))
    total = sum(gates) + 1e-12
    added = sum(g / total * module for g, module in zip(gates, modules, strict=True))
    expected = loss_by_hand(clip, inputs, names, added)
    label = inputs.pop("label")
    found = method.losses(method.features(**inputs, dataset=torch.tensor(task)), label)
    assert found["itm"].item() == pytest.approx(expected.item(), rel=1e-10)
    grads = [torch.autograd.grad(loss, list(p.values())) for loss in (*found.values(), expected)]
    for one, other in zip(*grads, strict=True):
        assert one.abs().max() > 0
        torch.testing.assert_close(one, other, rtol=1e-8, atol=1e-11)


def test_a_test_takes_no_sample(exact):
    method, clip, inputs = exact(**SMALL)
    gates = method.eval().router.rho[0].sigmoid()
    z, a = method.library.z, method.library.a
    added = (gates / gates.sum()) @ (z @ a)
    expected = loss_by_hand(clip, inputs, method.classes.names, added.view(4, 64))
    logits = method.logits(method.features(inputs["image"]))
    found = F.cross_entropy(logits, inputs["label"])
    assert found.item() == pytest.approx(expected.item(), rel=1e-10)


def test_it_starts_as_the_hand_written_prompt(exact):
    """Without modules as these words; what it starts with moves no number by a thousandth."""
    method, clip, inputs = exact(moved=0.0)
    expected = loss_by_hand(clip, inputs, method.classes.names, torch.zeros(4, 64).double())
    label = inputs.pop("label")
    largest = 64 * 1e-3 / 16  # r, the largest z, the largest of A: 1/√(M d_t)
    assert 0 < method.library().abs().max() < largest
    fresh = method.losses(method.features(**inputs), label)["itm"]
    assert fresh.item() == pytest.approx(expected.item(), rel=1e-3)
    with torch.no_grad():
        method.library.z.zero_()
    found = method.losses(method.features(**inputs), label)["itm"]
    assert found.item() == pytest.approx(expected.item(), rel=1e-10)


def test_numbers_of_parameters():
    """On ViT-B/16: the library's for ten data sets, and a run's own."""

    def count(module):
        return sum(p.numel() for p in module.parameters())

    assert count(Library(8, 64, 4, 512, factored=True)) == 8 * 64 + 64 * 4 * 512
    assert count(Library(8, 64, 4, 512, factored=False)) == 8 * 4 * 512
    assert count(Router(10, 8, 1.0)) == 80


def test_what_a_step_draws(make_trainer, further):
    trainer = make_trainer("MP2", **further)
    trainer.epoch = 0
    views = {"img": torch.zeros(2, 3, 32, 32), "label": torch.zeros(2), "index": torch.arange(2)}
    drawn = [
        trainer.known_features({**views, "dataset": torch.tensor(i)})["noise"] for i in (0, 1, 1)
    ]
    assert drawn[0].shape == (8,) and drawn[0].min() > 0 and drawn[0].max() < 1
    assert torch.equal(drawn[1], drawn[2]) and not torch.equal(drawn[0], drawn[1])


PHASES = {
    **TUNED,
    "TRAINER__MP2__ROUTER_EPOCHS": 1,
    "TRAINER__MP2__THEN": "prompts",
    "TRAIN__CHECKPOINT_FREQ": 1,
    "OPTIM__MAX_EPOCH": 2,
    "OPTIM__NAME": "adamw",
    "OPTIM__WEIGHT_DECAY": 0.1,
    "OPTIM__WARMUP_EPOCH": 0,
}


def state(folder, epoch=2):
    return load_checkpoint(folder / f"prompt_learner/model.pth.tar-{epoch}")["state_dict"]


def moved(one, other):
    return {name.partition(".")[0] for name in one if not torch.equal(one[name], other[name])}


@pytest.mark.parametrize(
    ("then", "second"),
    [("prompts", {"library"}), ("all", {"library", "router"}), ("router", {"router"})],
)
def test_phases(command, make_trainer, tmp_path, then, second):
    """First the router alone, then what THEN says; what rests doesn't decay either."""
    options = {**PHASES, "TRAINER__MP2__THEN": then}
    start = make_trainer("MP2", **options).method.trained_state()
    train.main(command("MP2", output=tmp_path / "run", **options))
    first, last = state(tmp_path / "run", 1), state(tmp_path / "run", 2)
    assert moved(start, first) == {"router"} and moved(first, last) == second


def test_a_run_goes_on_in_its_phase(command, tmp_path, monkeypatch):
    train.main(command("MP2", output=tmp_path / "whole", **PHASES))
    words = command("MP2", output=tmp_path / "parts", **PHASES)
    update, calls = MP2.model_update, []

    def interrupted(trainer):
        calls.append(1)
        if len(calls) == trainer.num_batches + 2:
            raise KeyboardInterrupt
        update(trainer)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(MP2, "model_update", interrupted)
        train.main(words)
    train.main(words)
    same(state(tmp_path / "parts"), state(tmp_path / "whole"))


def test_phases_of_several_seeds(command, tmp_path):
    train.main(with_seeds(command("MP2", output=tmp_path / "both", **PHASES), 1, 2))
    train.main(with_seeds(command("MP2", output=tmp_path / "alone", **PHASES), 2))
    for epoch in (1, 2):
        both, alone = (state(tmp_path / name, epoch) for name in ("both/seed2", "alone"))
        same(both, alone, rtol=1e-4, atol=1e-5)
    assert moved(state(tmp_path / "both/seed1", 1), state(tmp_path / "both/seed1", 2)) == {
        "library"
    }


@pytest.fixture
def library(command, further, tmp_path):
    """The checkpoint of a run over three data sets, made by one command."""
    train.main(command("MP2", output=tmp_path / "library", **SMALL, **further))
    return tmp_path / "library/prompt_learner/model.pth.tar-2"


def result(folder):
    return json.loads((folder / "result.json").read_text())


def test_a_library_is_taken(command, make_trainer, library, tmp_path, capsys):
    saved = load_checkpoint(library)["state_dict"]
    assert saved["router.rho"].shape == (3, 3)
    start = {**TUNED, "MODEL__INIT_WEIGHTS": library}
    own = make_trainer("MP2", **TUNED).method.trained_state()
    method = make_trainer("MP2", **start).method
    products = (saved["library.z"] @ saved["library.a"]).view(3, 4, 64)
    same(
        method.trained_state(), {"library.products": products, **{"router.rho": own["router.rho"]}}
    )
    assert "A library of 3 modules: its products are free" in capsys.readouterr().out
    method = make_trainer("MP2", **start, TRAINER__MP2__START_TASK=2).method
    assert torch.equal(method.router.rho, saved["router.rho"][2:])
    for wrong, message in (
        ({"TRAINER__MP2__START_TASK": 3}, "START_TASK is 3; the library has data sets 0 to 2"),
        ({"TRAINER__MP2__MODULES": 2}, "the library has 3 modules of 256 numbers, this run 2 of"),
        ({"TRAINER__MP2__THEN": "nothing"}, "TRAINER.MP2.THEN"),
    ):
        with pytest.raises(UserError, match=message):
            make_trainer("MP2", **{**start, **wrong})
    # Both say what they saw; so does a run that goes on from the second, or tests it.
    assert result(tmp_path / "library")["sees"] == ["other_data_sets"]
    train.main(command("DePT_MP2", output=tmp_path / "tuned", **start))
    assert result(tmp_path / "tuned")["sees"] == ["other_data_sets"]
    (file,) = (tmp_path / "tuned").glob("*/model.pth.tar-2")
    options = {"MODEL__INIT_WEIGHTS": file}
    train.main(command("DePT_MP2", output=tmp_path / "again", **TUNED, **options))
    assert result(tmp_path / "again")["sees"] == ["other_data_sets"]


def test_a_library_is_a_model_of_its_own_data_set(command, library, tmp_path):
    folder = tmp_path / "library"
    words = ["--eval-only", "--model-dir", str(folder)]
    train.main(command("MP2", *words, output=tmp_path / "test", **SMALL))
    for key in ("accuracy", "sees"):
        assert result(tmp_path / "test")[key] == result(folder)[key]


def test_its_control(command, make_trainer, further, tmp_path):
    """CoOp on the same data sets, then tuned."""
    options = {"TRAINER__COOP__CTX_INIT": WORDS}
    train.main(command("CoOp", output=tmp_path / "library", **options, **further))
    assert result(tmp_path / "library")["sees"] == ["other_data_sets"]
    trainer = make_trainer("CoOp", **options, **further)
    text = trainer.method.eval().encode_text()
    batch = {"image": torch.zeros(2, 3, 32, 32), "dataset": torch.tensor(2)}
    others = trainer.method.features(**batch).text
    names = trainer.method.classes.further[1].names
    expected = trainer.method.encoders.text.encode([f"{WORDS} {name}." for name in names])
    torch.testing.assert_close(others, expected, rtol=1e-4, atol=1e-4)
    assert text.shape == (5, 32) and others.shape == (3, 32)
    start = {**options, "MODEL__INIT_WEIGHTS": tmp_path / "library/prompt_learner/model.pth.tar-2"}
    train.main(command("CoOp", output=tmp_path / "tuned", **start))
    assert result(tmp_path / "tuned")["sees"] == ["other_data_sets"]
    with pytest.raises(UserError, match="CSC is for one data set"):
        make_trainer("CoOp", TRAINER__COOP__CSC=True, **further)
