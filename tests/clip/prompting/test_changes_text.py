"""Text changes: against arithmetic written out sentence by sentence; at a block; several runs."""

import copy

import pytest
import torch
from torch import nn

from clip.fused import mlp
from clip.prompting import (
    Branch,
    Encoders,
    LowRank,
    NameShift,
    Read,
    Tokens,
    Weights,
    block,
    shared,
)
from dassl.utils import UserError
from tests.clip.prompting.oracle import NAMES, agree, both, model_of, random, tiny_clip
from tests.clip.prompting.test_changes import (
    CONTEXTS,
    INSIDE,
    LAYERS,
    READS,
    TEXT,
    bottleneck,
    flat,
    low_rank,
    own_block,
    text_case,
    trained,
    vectors,
)

D = torch.float64


def by_hand(model, sentences, blocks, tokens=lambda i, c, x: x, shift=None, branches=()):
    """Each sentence alone, without padding, through CLIP's own blocks.

    sentences: per class input vectors and whether each token is the class's own.
    """
    features = []
    for c, (ids, own) in enumerate(sentences):
        x = model.token_embedding(torch.tensor(ids)) + model.positional_embedding[: len(ids)]
        if shift is not None:
            for row, place in zip(shift, own, strict=False):
                x = x + row * (torch.arange(len(ids)) == place)[:, None]
        x = x.unsqueeze(1)  # (L,1,W)
        for i, layer in enumerate(blocks):
            x = tokens(i, c, x)
            y = layer(x)
            for branch in branches:
                if branch.layer == i:
                    y = y + branch.module({"ln_1": layer.ln_1(x), "output": y}[branch.of])
            x = y
        features.append(model.ln_final(x[-1, 0]) @ model.text_projection)
    return torch.stack(features)


@pytest.fixture
def sentences():
    """(model, token ids and own places per class, the layout of the same prompts)"""
    text = both(D)[0].text
    words = text.token_ids("a photo")
    sos, eot = 49406, 49407
    rows = []
    for name in NAMES:
        ids = text.token_ids(name.replace("_", " ") + ".")
        rows.append(([sos, *words, *ids, eot], range(3, 3 + len(ids))))
    return model_of(D), rows, text.layout(NAMES, 0, words=words)


def check(sentences, changes, leaves, **written):
    model, rows, layout = sentences
    written.setdefault("blocks", model.transformer.resblocks)
    for encoders in both(D):
        features = encoders.text(layout, changes=changes)
        agree(features, by_hand(model, rows, **written), leaves)


def test_tokens_are_where_they_say(sentences):
    shared, mine, other = vectors(2, dtype=D), vectors(6, 1, dtype=D, seed=2), vectors(1, dtype=D)

    def tokens(i, c, x):
        if i == 1:  # [SOS] s s a photo …
            x = torch.cat([x[:1], shared.unsqueeze(1), x[1:]])
        if i == 2:  # [SOS] s s+½ m photo …
            x = torch.cat([x[:3], mine[c].unsqueeze(1), x[4:]])
            x = torch.cat([x[:2], 0.5 * x[2:3] + other.unsqueeze(1), x[3:]])
        return x

    changes = [
        Tokens(1, shared, insert=True),
        Tokens(2, mine, at=3),
        Tokens(2, other, at=2, keep=0.5),
    ]
    check(sentences, changes, [shared, mine, other], tokens=tokens)


def test_a_shift_reaches_the_class_s_own_tokens_alone(sentences):
    shift = vectors(4, dtype=D)
    check(sentences, [NameShift(shift)], [shift], shift=shift)


def test_branches_add_what_they_say(sentences):
    branches = [Branch(1, bottleneck(128, D)), Branch(2, bottleneck(128, D, 6), of="output")]
    check(sentences, branches, trained(branches), branches=branches)


@pytest.mark.parametrize("part", LowRank.PARTS)
def test_low_rank_changes_are_changed_weights(sentences, part):
    change = low_rank(part, 128, D)
    blocks = copy.deepcopy(sentences[0].transformer.resblocks)
    delta = change.scale * change.b.detach() @ change.a.detach()
    attn, mlp = blocks[1].attn, blocks[1].mlp
    with torch.no_grad():
        if part in "qkv":
            attn.in_proj_weight.unflatten(0, (3, -1))["qkv".index(part)].add_(delta)
        else:
            {"o": attn.out_proj, "fc": mlp.c_fc, "proj": mlp.c_proj}[part].weight.add_(delta)
    model, rows, layout = sentences
    expected = by_hand(model, rows, blocks)
    for encoders in both(D):
        features = encoders.text(layout, changes=[change])
        torch.testing.assert_close(features, expected, rtol=0, atol=1e-12)


def test_own_blocks_are_trained_and_the_shared_ones_left(sentences):
    model = sentences[0]
    before = copy.deepcopy(model.state_dict())
    own = copy.deepcopy(model.transformer.resblocks[2]).requires_grad_()
    for parameter in own.parameters():
        nn.init.normal_(parameter, std=0.1)
    change = Weights(2, dict(own.named_parameters()))
    check(
        sentences,
        [change],
        trained([change]),
        blocks=[*model.transformer.resblocks[:2], own],
    )
    assert all(p.grad is None and not p.requires_grad for p in model.transformer.parameters())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("case", TEXT)
@pytest.mark.parametrize("fast", [True, False])
def test_features_at_a_block(fast, case):
    encoder = both(D)[not fast].text
    layout, ctx, changes = text_case(both(D)[0], D, case)
    first = encoder.first_layer(changes)
    assert first == min(change.layer for change in changes)
    for layer in range(first + 1):
        reads = {name: r for name, r in READS.items() if r.layer is None or r.layer >= layer}
        state = encoder.below(layout, layer, ctx)
        kept = [x for x in (state.prefix, state.tokens) if x is not None]
        assert layer == 0 or not any(x.requires_grad for x in kept)
        above = flat(encoder.above(state, changes, reads))
        whole = flat(encoder(layout, ctx.detach(), changes=changes, reads=reads))
        agree(above, whole, trained(changes))


@pytest.mark.parametrize("context", CONTEXTS)
def test_features_at_any_block_of_any_context(context):
    for encoders in both(D):
        layout, ctx, _ = text_case(both(D)[0], D, "shift", context)
        whole = encoders.text(layout, ctx).detach()
        for layer in range(LAYERS + 1):
            above = encoders.text.above(encoders.text.below(layout, layer, ctx))
            torch.testing.assert_close(above, whole, rtol=0, atol=1e-12)
        head = [Weights(LAYERS, {"text_projection": random(128, 32, dtype=D)})]
        agree(
            encoders.text.above(encoders.text.below(layout, LAYERS, ctx), head),
            encoders.text(layout, ctx.detach(), changes=head),
            trained(head),
        )


@pytest.mark.parametrize("budget", [None, 1])
@pytest.mark.parametrize("fast", [True, False])
@pytest.mark.parametrize("case", ["per class, inserted", "everything"])
def test_several_runs_at_once(case, fast, budget):
    """Mapped over runs (torch.func.vmap), each with tensors of its own, is each alone."""
    encoder = both(D)[not fast].text
    encoder.memory_budget = budget
    layout, ctx, changes = text_case(both(D)[0], D, case)
    leaves = [x.detach() for x in trained(changes)]
    stacked = [torch.stack([x, 1.1 * x + 0.01]).requires_grad_() for x in leaves]

    def features(*values):
        given = iter(values)
        told = []
        for change in changes:
            if isinstance(change, Branch):
                names = [name for name, _ in change.module.named_parameters()]
                told.append(
                    Branch(change.layer, Called(change.module, names, given), *ends(change))
                )
            elif isinstance(change, Weights):
                told.append(Weights(change.layer, {n: next(given) for n in change.tensors}))
            elif isinstance(change, LowRank):
                told.append(
                    LowRank(change.layer, change.part, next(given), next(given), change.scale)
                )
            else:
                told.append(type(change)(**{**vars(change), "vectors": next(given)}))
        results = encoder(layout, ctx.detach(), changes=told, reads=READS)
        return torch.cat([x.flatten() for x in results.values()])

    together = torch.func.vmap(features)(*stacked)
    apart = torch.stack([features(*(x[r] for x in stacked)) for r in range(2)])
    agree(together, apart, stacked)
    with torch.no_grad():
        again = torch.func.vmap(features)(*stacked)
    torch.testing.assert_close(again, together.detach(), rtol=0, atol=1e-10)


def ends(branch):
    return branch.of, branch.to


class Called(nn.Module):
    """A module whose parameters are these tensors: what functional_call makes of a method's."""

    def __init__(self, module, names, values):
        super().__init__()
        self.module = copy.deepcopy(module)
        for name in names:
            owner, _, last = name.rpartition(".")
            self.module.get_submodule(owner)._parameters[last] = next(values)

    def forward(self, x):
        return self.module(x)


def test_permuting_classes_permutes_everything():
    encoder = both(D)[0].text
    order = [3, 1, 5, 0, 2, 4]
    layout, ctx, changes = text_case(both(D)[0], D, "everything")
    there = encoder(layout, ctx, changes=changes, reads=READS)
    moved = [
        Tokens(**{**vars(c), "vectors": c.vectors[order]})
        if isinstance(c, Tokens) and c.vectors.dim() == 3
        else c
        for c in changes
    ]
    layout = encoder.layout([NAMES[c] for c in order], 2)
    here = encoder(layout, ctx, changes=moved, reads=READS)
    for name, value in there.items():
        torch.testing.assert_close(here[name], value[order], rtol=0, atol=1e-10)


@torch.no_grad()
def test_chunks_without_gradients_change_nothing(monkeypatch):
    encoder = both(D)[0].text
    layout, ctx, changes = text_case(both(D)[0], D, "per class, inserted")

    def results():
        state = encoder.below(layout, 1, ctx)
        found = encoder.above(state, changes, {"tokens": READS["middle"], "out": READS["out"]})
        return [state.prefix, state.tokens, *found.values()]

    whole = results()
    monkeypatch.setattr(shared, "_TOKENS_PER_CHUNK", 1)
    for a, b in zip(results(), whole, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-12)


@pytest.mark.parametrize("context", CONTEXTS)
@pytest.mark.parametrize("layer", range(LAYERS + 1))
def test_some_classes_of_a_state(layer, context):
    """A state's classes may be taken apart, in any order: what is kept serves all of them."""
    classes = torch.tensor([4, 0, 3])
    for encoders in both(D):
        layout, ctx, _ = text_case(both(D)[0], D, "shift", context)
        change = Tokens(1, vectors(1, dtype=D), at=1)
        changes = [change] if layer < 2 else []
        state = encoders.text.below(layout, layer, ctx)
        if layer == 2:
            changes = [own_block("text", D, 2)]
        whole = encoders.text.above(state, changes)
        part = encoders.text.above(state.select(classes), changes)
        torch.testing.assert_close(part, whole[..., classes, :], rtol=0, atol=1e-12)


def test_one_context_per_image_keeps_its_dimension_for_one_image():
    for encoders in both(D):
        layout = encoders.text.layout(NAMES, 2)
        tokens = Tokens(1, vectors(1, 1, 2, dtype=D))
        assert encoders.text(layout, vectors(2, dtype=D), changes=[tokens]).shape == (1, 6, 32)


@pytest.mark.parametrize("precision", ["bfloat16", "autocast"])
def test_half_precision_is_no_farther_from_exact_than_the_plain_path(precision):
    dtype = torch.float32
    layout, ctx, changes = text_case(both(dtype)[0], dtype, "everything")
    ctx = ctx.detach()
    exact = both(dtype)[1].text(layout, ctx, changes=changes)
    errors = {}
    for fast in (True, False):
        encoders = both(dtype)[not fast]
        if precision == "bfloat16":
            encoders = Encoders(tiny_clip(torch.bfloat16), fast)
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "autocast"):
            features = encoders.text(layout, ctx, changes=changes)
        assert features.dtype == torch.bfloat16
        errors[fast] = (features.float() - exact).norm() / exact.norm()
        grads = torch.autograd.grad(features.float().sum(), trained(changes))
        assert all(torch.isfinite(g).all() for g in grads)
    assert errors[True] <= 1.5 * errors[False] < 0.3


def test_chunks_draw_the_same_random_numbers_again():
    encoder = both(D)[0].text
    layout = encoder.layout(NAMES, 2)
    ctx = vectors(2, dtype=D)
    a, b = (x.detach().requires_grad_() for x in (low_rank("v", 128, D).a, low_rank("v", 128, D).b))
    changes = [LowRank(1, "v", a, b, dropout=0.25)]
    encoder.memory_budget = 1

    def loss(seed):
        torch.manual_seed(seed)
        return encoder(layout, ctx, changes=changes).square().sum()

    assert loss(0) != loss(1)
    grad = torch.autograd.grad(loss(0), b)[0].flatten()
    step = torch.zeros_like(grad)
    step[3] = 1e-5
    with torch.no_grad():
        b += step.view_as(b)
        above = loss(0)
        b -= 2 * step.view_as(b)
        below = loss(0)
    torch.testing.assert_close((above - below) / 2e-5, grad[3], rtol=1e-5, atol=1e-9)


SHARED = {  # tokens of the prefix that layers 0, 1, 2 attend to
    "inserted, then replaced": [3, 5, 5],
    "per class": [3, 1, 1],
    "across the prefix": [2, 2, 3],
    "behind the prefix": [3, 3, 3],
    "contexts": [3, 1, 1],
    "shift": [3, 3, 3],
    "branches everywhere": [3, 3, 3],
    "low rank q, k, v": [3, 3, 3],
    "own blocks": [3, 3, 3],
}
FUSED = {  # blocks whose MLP is the fused one
    "branches everywhere": 3,
    "low rank q, k, v": 3,
    "low rank v, o": 3,
    "own norms": 3,
    "low rank mlp": 2,
    "own blocks": 1,
}


@pytest.mark.parametrize("case", SHARED)
def test_the_prefix_stays_shared_as_long_as_it_can(monkeypatch, case):
    lengths = []

    def attend(q, kv, prefix_k, prefix_v, packing):
        lengths.append(prefix_k.shape[2])
        return own(q, kv, prefix_k, prefix_v, packing)

    own = shared.attend
    monkeypatch.setattr(shared, "attend", attend)
    layout, ctx, changes = text_case(both(D)[0], D, case)
    both(D)[0].text(layout, ctx, changes=changes)
    assert lengths == SHARED[case]


@pytest.mark.parametrize("case", FUSED)
def test_what_is_left_alone_keeps_its_fast_parts(monkeypatch, case):
    calls = []
    monkeypatch.setattr(block, "mlp", lambda layers, x: calls.append(1) or mlp(layers, x))
    encoder, changes = both(D)[0].image, INSIDE[case]("image", D)
    encoder(random(2, 3, 32, 32, dtype=D).detach(), changes=changes)
    assert len(calls) == FUSED[case]


def test_texts_keep_what_follows_the_name():
    encoder = both(D)[0].text
    layout = encoder.layout(NAMES, 0, words=encoder.token_ids("a photo of a"), tail=", a pet.")
    expected = encoder.encode([f"a photo of a {n.replace('_', ' ')}, a pet." for n in NAMES])
    torch.testing.assert_close(encoder(layout), expected, rtol=0, atol=1e-12)


def test_errors_are_one_clear_line():
    encoder = both(torch.float32)[0].text
    layout, two = encoder.layout(NAMES, 2), vectors(2, dtype=torch.float32)
    sets = two.expand(3, 1, 2, -1)
    state = encoder.below(layout, 2, two)
    for call, message in (
        (lambda: encoder(layout, two, changes=[Tokens(3, two)]), "layer 3: .* layers 0 to 2"),
        (lambda: encoder(layout, two, changes=[Tokens(1, two, at=4)]), "positions 1 to 4"),
        (lambda: encoder(layout, two, changes=[Tokens(1, two, None, True)]), "differ in length"),
        (lambda: encoder(layout, two, changes=[Tokens(1, two.expand(4, 2, -1))]), "for 6 classes"),
        (lambda: encoder(layout, sets[:2], changes=[Tokens(1, sets)]), "side by side: 2"),
        (lambda: encoder.above(state, [Tokens(1, two)]), "below layer 2"),
        (lambda: encoder.above(state, (), {"x": Read(1)}), "'x' at layer 1"),
        (lambda: encoder(layout, two, reads={"x": Read(at=-1)}), "positions 0 to"),
        (lambda: encoder(layout, two, reads={"x": Read(1, projected=True)}), "last norm"),
        (lambda: encoder(layout, two, reads={"x": Read(at="start")}), "'start'"),
        (lambda: encoder(layout, two, changes=[own_block("text", torch.float32, 1)] * 2), "twice"),
        (lambda: LowRank(0, "in", two, two), "no part 'in'"),
        (lambda: Tokens(0, two, insert=True, keep=0.5), "nothing that could be kept"),
        (lambda: encoder.below(layout, 4, two), "0 to 3"),
    ):
        with pytest.raises(UserError, match=message):
            call()
