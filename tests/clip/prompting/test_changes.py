"""What the towers are told to do inside: the fast paths against the plain ones, and those against
arithmetic that is written out sentence by sentence."""

import copy

import pytest
import torch
from torch import nn

from clip.prompting import Branch, LowRank, NameShift, Read, Tokens, Weights
from clip.prompting.shared import chunks_of
from tests.clip.prompting.oracle import NAMES, agree, both, dtypes, model_of, random

WIDTHS = {"text": 128, "image": 64}
LAYERS = 3


def bottleneck(width: int, dtype: torch.dtype, seed: int = 5) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(width, 4), nn.GELU(), nn.Linear(4, width)).to(dtype)


def low_rank(part: str, width: int, dtype: torch.dtype, layer: int = 1) -> LowRank:
    sizes = {"fc": (width, 4 * width), "proj": (4 * width, width)}.get(part, (width, width))
    a = (0.1 * random(2, sizes[0], dtype=dtype, seed=len(part))).detach().requires_grad_()
    b = (0.1 * random(sizes[1], 2, dtype=dtype, seed=7)).detach().requires_grad_()
    return LowRank(layer, part, a, b, scale=0.5)


def own_block(tower: str, dtype: torch.dtype, layer: int) -> Weights:
    model = model_of(dtype)
    transformer = model.transformer if tower == "text" else model.visual.transformer
    block = copy.deepcopy(transformer.resblocks[layer]).requires_grad_()
    with torch.no_grad():
        for parameter in block.parameters():
            parameter.mul_(1.1).add_(0.01)
    return Weights(layer, dict(block.named_parameters()))


def own_norms(tower: str, dtype: torch.dtype) -> list[Weights]:
    width = WIDTHS[tower]

    def norm(name):
        return {
            f"{name}.weight": random(width, dtype=dtype, seed=2),
            f"{name}.bias": random(width, dtype=dtype, seed=3),
        }

    last = ("ln_final", "text_projection") if tower == "text" else ("ln_post", "proj")
    projection = {last[1]: random(width, 32, dtype=dtype, seed=4)}
    return [
        Weights(1, {**norm("ln_1"), **norm("ln_2")}),
        Weights(LAYERS, {**norm(last[0]), **projection}),
    ]


def vectors(*shape, dtype, tower="text", seed=1):
    return random(*shape, WIDTHS[tower], dtype=dtype, seed=seed)


# What text and image towers are told; the text's prompts have M = 2 context vectors, the prefix
# then P = 3 tokens, the shortest of NAMES ends at position 5.
INSIDE = {
    "branch": lambda t, d: [
        Branch(1, bottleneck(WIDTHS[t], d)),
        Branch(2, bottleneck(WIDTHS[t], d)),
    ],
    "branch to the middle": lambda t, d: [
        Branch(0, bottleneck(WIDTHS[t], d), "attention", "middle")
    ],
    "branches everywhere": lambda t, d: [
        Branch(i, bottleneck(WIDTHS[t], d, seed), of, to)
        for to, sources in Branch.SOURCES.items()
        for seed, of in enumerate(sources)
        for i in (1, 2)
    ],
    "low rank q, k, v": lambda t, d: [
        low_rank(p, WIDTHS[t], d, i) for p in "qkv" for i in range(LAYERS)
    ],
    "low rank v, o": lambda t, d: [low_rank("v", WIDTHS[t], d), low_rank("o", WIDTHS[t], d)],
    "low rank mlp": lambda t, d: [low_rank("fc", WIDTHS[t], d), low_rank("proj", WIDTHS[t], d)],
    "own norms": own_norms,
    "own blocks": lambda t, d: [own_block(t, d, 1), own_block(t, d, 2)],
}
ALL = ("branches everywhere", "low rank q, k, v", "low rank mlp", "own norms")
TEXT = {
    "inserted, then replaced": lambda d: [
        Tokens(1, vectors(2, dtype=d), insert=True),
        Tokens(2, vectors(2, dtype=d, seed=2), keep=0.5),
    ],
    "per class": lambda d: [Tokens(1, vectors(6, 2, dtype=d))],
    "per class, inserted": lambda d: [
        Tokens(1, vectors(6, 2, dtype=d), insert=True),
        Tokens(2, vectors(1, dtype=d, seed=2)),
        Tokens(2, vectors(6, 2, dtype=d, seed=3), at=2, keep=0.25),
    ],
    "across the prefix": lambda d: [
        Tokens(0, vectors(2, dtype=d), at=2),
        Tokens(1, vectors(6, 2, dtype=d, seed=2), at=2),
        Tokens(2, vectors(1, dtype=d, seed=3), at=1, insert=True),
    ],
    "behind the prefix": lambda d: [
        Tokens(1, vectors(1, dtype=d), at=4, insert=True),
        Tokens(1, vectors(1, dtype=d, seed=2), at=3, keep=2.0),
    ],
    "contexts": lambda d: [
        Tokens(1, vectors(3, 6, 1, dtype=d), insert=True),
        Tokens(2, vectors(3, 1, 3, dtype=d, seed=2)),
    ],
    "shift": lambda d: [NameShift(vectors(3, dtype=d))],
    "shift per context": lambda d: [NameShift(vectors(3, 1, 3, dtype=d))],
    "everything": lambda d: [
        NameShift(vectors(2, dtype=d)),
        Tokens(1, vectors(6, 2, dtype=d, seed=2), insert=True),
        *(change for case in ALL for change in INSIDE[case]("text", d)),
    ],
    **{name: (lambda d, case=case: case("text", d)) for name, case in INSIDE.items()},
}
CONTEXTS = {
    "shared": ((2,), "end"),
    "side by side": ((3, 1, 2), "end"),
    "csc": ((6, 2), "end"),
    "middle": ((2,), "middle"),
    "front": ((3, 1, 2), "front"),
}
READS = {
    "first": Read(0, slice(2, 9)),
    "middle": Read(2, slice(None)),
    "end": Read(2),
    "raw": Read(LAYERS, 1),
    "out": Read(at=slice(1, 6, 2)),
    "wide": Read(at=2, projected=True),
}


def trained(changes) -> list[torch.Tensor]:
    found = []
    for change in changes:
        if isinstance(change, Branch):
            found += change.module.parameters()
        elif isinstance(change, Weights):
            found += change.tensors.values()
        elif isinstance(change, LowRank):
            found += [change.a, change.b]
        else:
            found.append(change.vectors)
    return found


def flat(results: dict[str, torch.Tensor]) -> torch.Tensor:
    """All results in one row, each at its own scale."""
    return torch.cat([x.flatten() / x.detach().abs().max() for x in results.values()])


def text_case(encoders, dtype, case, context="shared"):
    shape, position = CONTEXTS[context]
    ctx = vectors(*shape, dtype=dtype, seed=11)
    changes = TEXT[case](dtype)
    layout = encoders.text.layout(NAMES, 2, position)
    return layout, ctx, changes


@dtypes
@pytest.mark.parametrize("case", TEXT)
def test_text(dtype, case):
    fast, plain = both(dtype)
    layout, ctx, changes = text_case(fast, dtype, case)
    results = [e.text(layout, ctx, changes=changes) for e in (fast, plain)]
    agree(*results, [ctx, *trained(changes)])
    assert (results[0] - fast.text(layout, ctx)).abs().max() > 1e-3  # it does something


@pytest.mark.parametrize("context", list(CONTEXTS)[1:])
@pytest.mark.parametrize(
    "case", ["inserted, then replaced", "per class, inserted", "contexts", "shift", "everything"]
)
def test_text_of_other_contexts(case, context):
    if case == "contexts" and context in ("csc", "middle"):
        context = "side by side"
    fast, plain = both(torch.float64)
    layout, ctx, changes = text_case(fast, torch.float64, case, context)
    results = [flat(e.text(layout, ctx, changes=changes, reads=READS)) for e in (fast, plain)]
    agree(*results, [ctx, *trained(changes)])


@pytest.mark.parametrize("case", TEXT)
def test_text_in_chunks_with_reads(case):
    fast, plain = both(torch.float64)
    layout, ctx, changes = text_case(fast, torch.float64, case)
    fast.text.memory_budget = 1
    assert len(chunks_of(fast.text, layout, 1, LAYERS)) == len(NAMES)
    results = [flat(e.text(layout, ctx, changes=changes, reads=READS)) for e in (fast, plain)]
    agree(*results, [ctx, *trained(changes)])
