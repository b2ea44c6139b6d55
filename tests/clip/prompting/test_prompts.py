"""The fast encoder paths against the plain ones, values and gradients."""

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from clip.prompting import Encoders
from clip.prompting.shared import chunks_of
from dassl.utils import UserError
from tests.clip.prompting.oracle import NAMES, agree, both, dtypes, random, tiny_clip


@dtypes
@pytest.mark.parametrize("shape", [(4,), (3, 1, 4), (6, 4)], ids=["one", "side by side", "csc"])
@pytest.mark.parametrize("position", ["end", "middle", "front"])
def test_text_context(dtype, shape, position):
    fast, plain = both(dtype)
    ctx = random(*shape, 128, dtype=dtype)
    layout = fast.text.layout(NAMES, 4, position)
    agree(fast.text(layout, ctx), plain.text(layout, ctx), [ctx])


@dtypes
@pytest.mark.parametrize("words", ["", "of a"])
@pytest.mark.parametrize("contexts", [None, 3])
@pytest.mark.parametrize("n_deep", [2, 1])
def test_deep_text_prompts(dtype, contexts, n_deep, words):
    fast, plain = both(dtype)
    lead = () if contexts is None else (contexts,)
    ctx = random(*lead, *((1,) if lead else ()), 2, 128, dtype=dtype)
    deep = random(*lead, 2, n_deep, 128, dtype=dtype, seed=2)
    layout = fast.text.layout(NAMES, 2, words=fast.text.token_ids(words))
    agree(fast.text(layout, ctx, deep), plain.text(layout, ctx, deep), [ctx, deep])


@dtypes
@pytest.mark.parametrize("csc", [False, True])
def test_deep_text_prompts_without_shared_prefix(dtype, csc):
    fast, plain = both(dtype)
    ctx = random(*((6,) if csc else ()), 2, 128, dtype=dtype)
    deep = random(1, 2, 128, dtype=dtype, seed=2)
    layout = fast.text.layout(NAMES, 2, "end" if csc else "front")
    agree(fast.text(layout, ctx, deep), plain.text(layout, ctx, deep), [ctx, deep])


@dtypes
@pytest.mark.parametrize("n,depth", [(2, 1), (2, 3), (4, 2)])
@pytest.mark.parametrize("sets", [None, 2])
def test_image_prompts(dtype, n, depth, sets):
    fast, plain = both(dtype)
    lead = () if sets is None else (sets,)
    image = random(4, 3, 32, 32, dtype=dtype).detach()
    prompts = random(*lead, n, 64, dtype=dtype, seed=2)
    deep = random(*lead, depth - 1, n, 64, dtype=dtype, seed=3)
    leaves = [prompts] if depth == 1 else [prompts, deep]
    agree(fast.image(image, prompts, deep), plain.image(image, prompts, deep), leaves)


@dtypes
def test_unprompted_towers_are_clips_own(dtype):
    from clip import tokenize

    model = tiny_clip(dtype)
    image = random(11, 3, 32, 32, dtype=dtype).detach()  # more than one chunk
    texts = [f"a photo of a {name}." for name in NAMES]
    for fast in (True, False):
        encoders = Encoders(model, fast)
        expected = model.encode_text(tokenize(texts))
        torch.testing.assert_close(encoders.text.encode(texts), expected, rtol=1e-4, atol=1e-5)
        features = encoders.image(image)
        assert not features.requires_grad
        torch.testing.assert_close(features, model.encode_image(image), rtol=1e-4, atol=1e-5)


@dtypes
def test_chunks_change_nothing(dtype):
    """Under a memory budget the suffixes are computed in chunks and recomputed for gradients."""
    fast, plain = both(dtype)
    ctx = random(3, 1, 4, 128, dtype=dtype)
    layout = fast.text.layout(NAMES, 4)
    fast.text.memory_budget = 1
    assert len(chunks_of(fast.text, layout, 3, fast.text.layers)) == len(NAMES)
    agree(fast.text(layout, ctx), plain.text(layout, ctx), [ctx])


def test_chunks_change_nothing_for_runs_side_by_side():
    fast, _ = both(torch.float64)
    layout = fast.text.layout(NAMES, 4)
    ctx = random(2, 4, 128, dtype=torch.float64)

    def features():
        return torch.func.vmap(lambda ctx: fast.text(layout, ctx))(ctx)

    whole = features()
    fast.text.memory_budget = 1
    agree(features(), whole, [ctx])


@pytest.mark.parametrize("precision", [torch.bfloat16, None])
def test_chunks_change_nothing_in_mixed_precision(precision):
    fast, _ = both(torch.float32)
    layout = fast.text.layout(NAMES, 4)
    ctx = random(4, 128, dtype=torch.float32)
    results = []
    for budget in (None, 1):
        fast.text.memory_budget = budget
        with torch.autocast("cpu", precision, enabled=precision is not None):
            features = fast.text(layout, ctx)
        results.append((features, *torch.autograd.grad(features.float().sum(), [ctx])))
    assert results[0][0].dtype == (precision or torch.float32)
    for a, b in zip(*results, strict=True):
        assert (a - b).abs().max() <= 0.02 * a.abs().max()


def test_gradients_of_gradients():
    """Of encoders that can be differentiated twice, which are the same encoders otherwise."""
    encoders = Encoders(tiny_clip(torch.float64))
    twice = encoders.twice_differentiable()
    assert twice.text.token_embedding is encoders.text.token_embedding and encoders.text.fast
    layout = encoders.text.layout(NAMES, 2)
    shapes = (2, 128), (1, 2, 128), (3, 64), (2, 3, 32, 32)
    ctx, deep, vision, image = (random(*s, dtype=torch.float64).detach() for s in shapes)

    def features(encoders, ctx, deep, vision):
        of_image = encoders.image(image, vision)
        return torch.cat([encoders.text(layout, ctx, deep), of_image])

    torch.testing.assert_close(
        features(twice, ctx, deep, vision), features(encoders, ctx, deep, vision)
    )
    inputs = [x.requires_grad_() for x in (ctx, deep, vision)]
    with sdpa_kernel(SDPBackend.MATH):
        total = features(twice, *inputs).square().sum()
        gradients = torch.autograd.grad(total, inputs, create_graph=True)
        length = sum(g.square().sum() for g in gradients)
        second = torch.autograd.grad(length, inputs)
    step = 1e-5 * gradients[0].detach() / gradients[0].norm().detach()
    moved = []
    for sign in (1, -1):
        x = (ctx + sign * step).detach().requires_grad_()
        g = torch.autograd.grad(
            features(encoders, x, deep, vision).square().sum(), [x, *inputs[1:]]
        )
        moved.append(sum(part.square().sum() for part in g))
    along = (second[0] * step).sum() * 2
    assert (moved[0] - moved[1]).item() == pytest.approx(along.item(), rel=1e-5)


def test_permuting_classes_permutes_features():
    fast, _ = both(torch.float64)
    ctx = random(4, 128, dtype=torch.float64)
    order = [3, 1, 5, 0, 2, 4]
    features = fast.text(fast.text.layout(NAMES, 4), ctx)
    permuted = fast.text(fast.text.layout([NAMES[c] for c in order], 4), ctx)
    torch.testing.assert_close(permuted, features[order], rtol=0, atol=1e-12)


def test_layout_writes_what_coop_writes():
    """[SOS] X…X name . [EOT], as tokenising the sentence with placeholder words gives."""
    from clip import tokenize

    layout = both(torch.float32)[0].text.layout(["golden_retriever", "u.s."], 3)
    expected = tokenize(["X X X golden retriever.", "X X X u.s.."])
    free = layout.slots < 0
    assert (layout.tokens[free] == expected[free]).all()
    assert layout.slots[:, 1:4].tolist() == [[0, 1, 2]] * 2
    assert (layout.eot == expected.argmax(-1)).all()


@pytest.mark.parametrize("position", ["end", "middle", "front"])
def test_words_after_the_context_stay_as_tokens(position):
    """Vectors equal to their words' embeddings give the sentence's own features."""
    encoder = both(torch.float64)[0].text
    words = encoder.token_ids("a photo of the")
    ctx = encoder.embed(words[:2]).double()
    sentences = {
        "end": "a photo of the {}.",
        "middle": "a {} photo of the.",
        "front": "{} a photo of the.",
    }
    layout = encoder.layout(NAMES, 2, position, words[2:])
    assert layout.prefix_length == (5 if position == "end" else 0)
    expected = encoder.encode([sentences[position].format(n.replace("_", " ")) for n in NAMES])
    torch.testing.assert_close(encoder(layout, ctx), expected, rtol=0, atol=1e-10)


def test_half_precision_is_no_farther_from_exact_than_the_plain_path():
    exact = Encoders(tiny_clip(torch.float64), fast=False)
    layout = exact.text.layout(NAMES, 4)
    ctx = random(4, 128, dtype=torch.float64).detach()
    reference = exact.text(layout, ctx)
    errors = {}
    for fast in (True, False):
        encoders = Encoders(tiny_clip(torch.float64).to(torch.bfloat16), fast)
        errors[fast] = (encoders.text(layout, ctx).double() - reference).norm()
    assert errors[True] <= 1.5 * errors[False]


def test_errors_are_one_clear_line():
    encoders, _ = both(torch.float32)
    with pytest.raises(UserError, match="'sideways' is unknown"):
        encoders.text.layout(NAMES, 4, "sideways")
    with pytest.raises(UserError, match="'dog dog.* tokens"):
        encoders.text.layout(["dog " * 80], 4)
    with pytest.raises(UserError, match="no classes"):
        encoders.text.layout([], 4)
