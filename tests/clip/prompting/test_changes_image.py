"""What the image tower is told to do inside, and what is read of it: fast against plain."""

import pytest
import torch

from clip.prompting import END, Branch, NameShift, Read, Tokens, Weights
from dassl.utils import UserError
from tests.clip.prompting.oracle import agree, both, dtypes, random
from tests.clip.prompting.test_changes import INSIDE, LAYERS, flat, trained, vectors

# An image has 17 tokens: 4 × 4 patches and the class token.
IMAGE = {
    "inserted, then replaced": lambda d: [
        Tokens(1, vectors(2, dtype=d, tower="image"), insert=True),
        Tokens(2, vectors(2, dtype=d, tower="image", seed=2), keep=0.5),
    ],
    "at the end": lambda d: [
        Tokens(0, vectors(2, dtype=d, tower="image"), at=None, insert=True),
        Tokens(1, vectors(2, dtype=d, tower="image", seed=2), at=17, keep=0.5),
        Tokens(2, vectors(2, dtype=d, tower="image", seed=3), at=17),
    ],
    "per image": lambda d: [Tokens(2, vectors(4, 3, dtype=d, tower="image"), at=5, insert=True)],
    "sets": lambda d: [Tokens(1, vectors(2, 16, dtype=d, tower="image"))],
    **{name: (lambda d, case=case: case("image", d)) for name, case in INSIDE.items()},
}
READS = {
    "first": Read(0, slice(2, 9)),
    "middle": Read(2, slice(None)),
    "class token": Read(2),
    "raw": Read(LAYERS, 1),
    "out": Read(at=slice(1, 6)),
    "wide": Read(at=2, projected=True),
}


def images(n: int, dtype: torch.dtype) -> torch.Tensor:
    return random(n, 3, 32, 32, dtype=dtype, seed=8).detach()


@dtypes
@pytest.mark.parametrize("reads", [None, READS], ids=["", "reads"])
@pytest.mark.parametrize("case", IMAGE)
def test_image(dtype, case, reads):
    fast, plain = both(dtype)
    image, changes = images(4, dtype), IMAGE[case](dtype)
    results = [e.image(image, changes=changes, reads=reads) for e in (fast, plain)]
    if reads:
        assert list(results[0]) == ["features", *reads]
        results = [flat(x) for x in results]
    else:
        assert (results[0] - fast.image(image)).abs().max() > 1e-3  # it does something
    agree(*results, trained(changes))


@pytest.mark.parametrize("at", [slice(-2, None), slice(3), -1, 20, END])
def test_any_output_tokens_are_read(at):
    fast, plain = both(torch.float64)
    change = Tokens(1, vectors(5, dtype=torch.float64, tower="image"), at=None, insert=True)
    results = [
        flat(e.image(images(2, torch.float64), changes=[change], reads={"x": Read(at=at)}))
        for e in (fast, plain)
    ]
    agree(*results, [change.vectors])


def test_unchanged_images_are_read_without_gradient():
    fast, plain = both(torch.float64)
    image = images(11, torch.float64)  # more than one chunk
    got, expected = (e.image(image, reads=READS) for e in (fast, plain))
    assert not any(x.requires_grad for x in got.values())
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-10)
    torch.testing.assert_close(got["features"], fast.image(image), rtol=0, atol=1e-10)


@pytest.mark.parametrize("case", IMAGE)
def test_batches_may_be_split(case):
    fast, _ = both(torch.float64)
    image, changes = images(4, torch.float64), IMAGE[case](torch.float64)
    whole = fast.image(image, changes=changes)
    if case in ("per image", "sets"):

        def part(first):
            vectors = changes[0].vectors
            own = slice(first, first + 2) if case == "per image" else slice(first // 2, None)
            vectors = vectors[own] if case == "per image" else vectors[first // 2 : first // 2 + 1]
            return [Tokens(**{**vars(changes[0]), "vectors": vectors})]

        parts = [fast.image(image[i : i + 2], changes=part(i)) for i in (0, 2)]
    else:
        parts = [fast.image(image[i : i + 1], changes=changes) for i in range(4)]
    torch.testing.assert_close(torch.cat(parts), whole, rtol=0, atol=1e-12)


@pytest.mark.parametrize("case", IMAGE)
@pytest.mark.parametrize("fast", [True, False])
def test_features_at_a_block(fast, case):
    encoder = both(torch.float64)[not fast].image
    image, changes = images(6, torch.float64), IMAGE[case](torch.float64)
    image = image if case in ("inserted, then replaced", "at the end") else image[:4]
    first = encoder.first_layer(changes)
    for layer in range(first + 1):
        reads = {name: r for name, r in READS.items() if r.layer is None or r.layer >= layer}
        tokens = encoder.below(image, layer)
        assert not tokens.requires_grad and tokens.shape == (len(image), 17, 64)
        above = flat(encoder.above(tokens, layer, changes, reads))
        whole = flat(encoder(image, changes=changes, reads=reads))
        agree(above, whole, trained(changes))


def test_features_at_the_last_block_are_the_features():
    for encoders in both(torch.float64):
        encoder, image = encoders.image, images(6, torch.float64)
        assert encoder.first_layer([]) == LAYERS
        tokens = encoder.below(image, LAYERS)
        assert tokens.shape == (6, 1, 64)
        above = encoder.above(tokens, LAYERS)
        torch.testing.assert_close(above, encoder(image), rtol=0, atol=1e-12)
        head = [Weights(LAYERS, {"proj": vectors(32, dtype=torch.float64, tower="image").t()})]
        assert encoder.first_layer(head) == LAYERS
        agree(encoder.above(tokens, LAYERS, head), encoder(image, changes=head), trained(head))


def test_errors_are_one_clear_line():
    encoder, dtype = both(torch.float32)[0].image, torch.float32
    image, two = images(4, dtype), vectors(2, dtype=dtype, tower="image")
    tokens = encoder.below(image, 2)
    for call, message in (
        (lambda: encoder(image, changes=[Tokens(3, two)]), "layer 3: .* layers 0 to 2"),
        (lambda: encoder(image, changes=[Tokens(1, two, at=16)]), "position 16 before layer 1"),
        (lambda: encoder(image, changes=[Tokens(1, two, at=0)]), "position 0"),
        (lambda: encoder(image, changes=[Tokens(1, two.expand(3, 2, -1))]), "for 4 images"),
        (lambda: encoder(image, changes=[NameShift(two)]), "no class name"),
        (lambda: encoder.above(tokens, 2, [Tokens(1, two)]), "below layer 2"),
        (lambda: encoder.above(tokens, 2, (), {"x": Read(1)}), "'x' at layer 1"),
        (lambda: encoder.above(tokens[:, :1], 3, (), {"x": Read(at=1)}), "only 'end'"),
        (lambda: encoder(image, reads={"features": Read()}), "own name"),
        (lambda: encoder(image, reads={"x": Read(at=17)}), "0 to 16"),
        (lambda: encoder(image, changes=[Weights(3, {"ln_final.weight": two})]), "no 'ln_final"),
        (lambda: encoder(image, changes=[Weights(0, {"ln_1.weight": two})]), r"is \(64,\), given"),
        (lambda: encoder.below(image, 4), "0 to 3"),
        (lambda: Branch(0, torch.nn.Identity(), "mlp", "middle"), "can't be"),
        (lambda: Branch(0, torch.relu), "torch.nn.Module"),
    ):
        with pytest.raises(UserError, match=message):
            call()
