"""ProMetaR's nets, its second gradient by its formula in fp64, its controls and its draws.

Its numbers are those of its public code: tests/originals.
"""

import pytest
import torch
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel

from clip.clip import load_model
from clip.prompting import Encoders
from dassl.utils import UserError
from tests.conftest import leave_zeros
from trainers.prometar import Modulation, ProMetaR, _drawn_parts
from tuning.method import Features, unit
from tuning.step import BatchLosses, OwnStep, scaled_update


def test_nets_by_hand():
    net = Modulation(2, 16, 8, torch.Generator().manual_seed(1)).double()
    assert net.first.shape == (2, 2, 32) and net.second.shape == (2, 2, 2)
    assert net.first.abs().max() <= 32**-0.5 and net.second.abs().max() <= 2**-0.5
    fit, regularizer = torch.randn(2, 2, 4, 8, dtype=torch.float64).unflatten(0, (2,)).unbind(0)
    fit, regularizer = fit[:, :2], regularizer[:, :2]  # (J,N,W)
    found = net(fit, regularizer)
    for layer in range(2):
        both = torch.cat([fit[layer].flatten(), regularizer[layer].flatten()])
        gamma = (net.second[layer] @ net.first[layer] @ both).sigmoid()
        # Row n of a prompt of eight numbers has γ_n.
        expected = fit[layer] + gamma[:, None] * regularizer[layer]
        torch.testing.assert_close(found[layer], expected)
    with pytest.raises(UserError, match="DIM_RATE is 5; it must divide 16"):
        Modulation(1, 16, 5, torch.Generator())


@pytest.fixture
def exact(make_trainer):
    """exact(**options) → a moved method in fp64, a step's inputs of two classes."""

    def build(name="ProMetaR", **options):
        options = {f"TRAINER__PROMETAR__{key}": value for key, value in options.items()}
        trainer = make_trainer(name, **options)
        clip = load_model(trainer.cfg.MODEL.BACKBONE.NAME)[0].double()
        encoders = Encoders(clip)
        built = trainer.build_method(trainer.cfg, encoders, trainer.method.classes)
        method = built.double().freeze().train()
        leave_zeros(method)
        inputs = trainer.step_inputs(next(iter(trainer.train_loader_x)))
        inputs |= {"image": inputs["image"].double(), "label": torch.tensor([3, 1, 3, 0])}
        inputs.pop("frozen_image", None)
        return method, inputs

    return build


def own_step(method, lr=0.01):
    """What `own_step` works with: plain SGD, and the gradients that it was given."""
    given = []
    optimizer = torch.optim.SGD(method.trained().values(), lr=lr)

    def update(names):
        given.append([p.grad.clone() for p in method.trained().values()])
        scaled_update([optimizer], scaler)

    scaler = torch.amp.GradScaler("cpu", enabled=False)
    return OwnStep(BatchLosses(method), {"usual": optimizer}, scaler, update), given


def by_the_formula(method, inputs, parts, lr):
    """∇φ of .0005 L_meta(φ − .0005 g(φ)) by autograd, at φ after the first step."""
    plain = method.encoders.twice_differentiable()
    own = dict(method.prompts.named_parameters())

    def features(prompts, rows):
        def call(kind):
            return functional_call(Called(method.prompts, kind), prefixed(prompts))

        image = inputs["image"][rows]
        seen = plain.image(image, *call("vision"))
        more = {"frozen_image": method.encoders.image(image)}
        return Features(seen, plain.text(method.layout, *call("text")), more)

    def modulated(rows, prompts, twice):
        losses = method.losses(features(prompts, rows), inputs["label"][rows])
        leaves = list(prompts.values())
        fit = torch.autograd.grad(losses["itm"], leaves, retain_graph=True, create_graph=twice)
        distance = losses["text"] + losses["image"]
        of_r = torch.autograd.grad(distance, leaves, retain_graph=True, create_graph=twice)
        towers = {"text": [], "vision": []}
        for name, *pair in zip(prompts, fit, of_r, strict=True):
            towers["vision" if name.startswith("vision") else "text"].append((name, *pair))
        found = {}
        for tower, rows_of_it in towers.items():
            names, *gradients = zip(*rows_of_it, strict=True)
            g = method.nets[tower](*(torch.stack(x) for x in gradients))
            found |= dict(zip(names, g, strict=True))
        return found

    everything = torch.arange(len(inputs["label"]))
    first = modulated(everything, own, twice=False)
    now = {name: (p - lr * first[name]).detach().requires_grad_() for name, p in own.items()}
    g = modulated(parts.support, now, twice=True)
    adapted = {name: p - 0.05 * g[name] for name, p in now.items()}
    of_query = features(adapted, parts.query)
    of_partners = features(adapted, parts.support[parts.partners])
    share = parts.share.double()[:, None]
    mixed = share * of_query.image + (1 - share) * of_partners.image
    logits = method.encoders.temperature * unit(mixed) @ unit(of_query.text).t()
    rows, label = torch.arange(len(mixed)), inputs["label"]
    log_p = logits.log_softmax(-1)
    of_own = log_p[rows, label[parts.query]]
    of_other = log_p[rows, label[parts.support[parts.partners]]]
    loss = -0.3 * (share[:, 0] * of_own + (1 - share[:, 0]) * of_other).mean()
    gradients = torch.autograd.grad(loss, list(now.values()))
    return first, loss, dict(zip(now, gradients, strict=True))


class Called(torch.nn.Module):
    """A module's method as its forward."""

    def __init__(self, module, name):
        super().__init__()
        self.module, self.name = module, name

    def forward(self):
        return getattr(self.module, self.name)()


def prefixed(prompts):
    return {f"module.{name}": value for name, value in prompts.items()}


def test_both_gradients_by_their_formulas(exact):
    method, inputs = exact(ADAPT_LR=0.05, LR_RATIO=0.3)
    own, given = own_step(method)
    parts = _drawn_parts(inputs, (0.5, 0.5))
    assert sorted([*parts.query.tolist(), *parts.support.tolist()]) == [0, 1, 2, 3]
    assert inputs["label"][parts.query].unique().numel() == 1
    with sdpa_kernel(SDPBackend.MATH):
        first, loss, second = by_the_formula(method, inputs, parts, lr=0.01)
    found = method.own_step(inputs, own)
    torch.testing.assert_close(found["meta"], loss.detach())
    names = [name.removeprefix("prompts.") for name in method.trained()]
    for expected, gradients in zip((first, second), given, strict=True):
        for name, gradient in zip(names, gradients, strict=True):
            torch.testing.assert_close(gradient, expected[name], rtol=1e-9, atol=1e-12)


def test_the_control_makes_the_second_step_without_its_loss(exact):
    steps = {}
    for meta, options in {"step": {}, "loss": {"LR_RATIO": 0.0}, "none": {}}.items():
        method, inputs = exact(META=meta, **options)
        own, given = own_step(method)
        losses = method.own_step(inputs, own)
        assert losses["meta"] == 0
        steps[meta] = given
    assert len(steps["none"]) == 1 and len(steps["step"]) == len(steps["loss"]) == 2
    assert all((gradient == 0).all() for gradient in (*steps["step"][1], *steps["loss"][1]))
    with pytest.raises(UserError, match=r"META is 'off'"):
        exact(META="off")


def test_a_batch_of_one_class_has_no_second_step(exact):
    method, inputs = exact()
    own, given = own_step(method)
    inputs["label"] = torch.full((4,), 2)
    losses = method.own_step(inputs, own)
    assert len(given) == 1 and losses["meta"] == 0


def test_first_order_leaves_the_second_out(exact):
    found = []
    for fast in (False, True):
        method, inputs = exact(FAST_ADAPTATION=fast, ADAPT_LR=0.05)
        own, given = own_step(method)
        method.own_step(inputs, own)
        found.append(torch.cat([gradient.flatten() for gradient in given[1]]))
    difference = (found[0] - found[1]).norm() / found[0].norm()
    assert 1e-6 < difference < 1


def test_a_head_beside_takes_part_in_the_first_step(exact):
    method, inputs = exact("DePT_ProMetaR")
    own, given = own_step(method)
    losses = method.own_step(inputs, own)
    assert set(losses) == {"itm", "text", "image", "cat", "meta"}
    names = list(method.trained())
    first, second = (dict(zip(names, gradients, strict=True)) for gradients in given)
    assert first["cat.classifier.weight"].abs().max() > 0
    # Only through what the support's CAT loss does to φ'.
    largest = second["cat.classifier.weight"].abs().max()
    assert 0 < largest < 1e-4 * first["cat.classifier.weight"].abs().max()


def test_draws_are_of_the_seed_alone():
    labels = torch.tensor([0, 1, 2, 0, 1, 2])

    def drawn(seed):
        state = torch.get_rng_state()
        parts = _drawn_parts({"label": labels, "draws": torch.tensor(seed)}, (0.5, 0.5))
        assert torch.equal(torch.get_rng_state(), state)
        return parts

    one, again = drawn(5), drawn(5)
    assert torch.equal(one.query, again.query) and torch.equal(one.share, again.share)
    queries = {tuple(drawn(seed).query.tolist()) for seed in range(30)}
    assert queries == {(0, 3), (1, 4), (2, 5)}
    assert all(0 <= share <= 1 for share in one.share.tolist())


def test_its_nets_start_by_the_seed_and_are_in_no_checkpoint(make_trainer):
    one, same = make_trainer("ProMetaR"), make_trainer("ProMetaR")
    other = ProMetaR.build_method(one.cfg.clone(), one.method.encoders, one.method.classes)
    assert torch.equal(one.method.nets["text"].first, same.method.nets["text"].first)
    assert torch.equal(one.method.nets["text"].first, other.nets["text"].first)
    assert not one.method.prepared_state()
    assert all(name.startswith("prompts.") for name in one.method.trained_state())
