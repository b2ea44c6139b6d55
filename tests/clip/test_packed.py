"""Attention of packed suffixes against its definition, class by class."""

import pytest
import torch
import torch.nn.functional as F

from clip.packed import Packing, attend

HEADS, SIZE, PREFIX = 2, 8, 3
WIDTH = HEADS * SIZE
LENGTHS = [3, 3, 4, 5, 7, 9, 16]  # three buckets, the first two padded


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def one_by_one(q, kv, prefix_k, prefix_v, at_eot):
    """`attend` as its definition says, class by class."""
    k, v = kv.chunk(2, dim=-1)
    out, start = [], 0
    for c, length in enumerate(LENGTHS):
        own = slice(start, start + length)
        start += length
        queries = q[:, c : c + 1] if at_eot else q[:, own]
        heads = (
            x.unflatten(-1, (HEADS, SIZE)).transpose(1, 2) for x in (queries, k[:, own], v[:, own])
        )
        queries, keys, values = heads
        keys = torch.cat([prefix_k, keys], dim=2)
        values = torch.cat([prefix_v, values], dim=2)
        n = queries.shape[2]
        seen = torch.ones(n, PREFIX + length).tril(PREFIX + length - n).bool()
        mixed = F.scaled_dot_product_attention(queries, keys, values, attn_mask=seen)
        out.append(mixed.transpose(1, 2).flatten(2))
    return torch.cat(out, dim=1)


def inputs(contexts: int, at_eot: bool) -> list[torch.Tensor]:
    tokens = sum(LENGTHS)
    q = random(contexts, len(LENGTHS) if at_eot else tokens, WIDTH, seed=1)
    kv = random(contexts, tokens, 2 * WIDTH, seed=2)
    prefix = [random(contexts, HEADS, PREFIX, SIZE, seed=seed) for seed in (3, 4)]
    return [x.requires_grad_() for x in (q, kv, *prefix)]


@pytest.mark.parametrize("at_eot", [False, True])
@pytest.mark.parametrize("contexts", [1, 2])
def test_packed_attention(contexts, at_eot):
    leaves = inputs(contexts, at_eot)
    packing = Packing(LENGTHS, torch.device("cpu"))
    assert [bucket.pad is None for bucket in packing.buckets] == [False, False, True]
    out = attend(*leaves, packing)
    expected = one_by_one(*leaves, at_eot)
    torch.testing.assert_close(out, expected, rtol=0, atol=1e-13)
    weights = random(*out.shape, seed=5)
    actual = torch.autograd.grad((out * weights).sum(), leaves)
    expected = torch.autograd.grad((expected * weights).sum(), leaves)
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-13)


@pytest.mark.parametrize("at_eot", [False, True])
def test_packed_attention_of_constant_suffixes(at_eot):
    """As before the first layer: one set of suffixes for all contexts, without gradients."""
    q, kv, prefix_k, prefix_v = inputs(2, at_eot)
    q, kv = q[:1].detach(), kv[:1].detach()
    packing = Packing(LENGTHS, torch.device("cpu"))
    out = attend(q, kv, prefix_k, prefix_v, packing)
    expected = one_by_one(*(x.expand(2, -1, -1) for x in (q, kv)), prefix_k, prefix_v, at_eot)
    torch.testing.assert_close(out, expected, rtol=0, atol=1e-13)
    actual = torch.autograd.grad(out.square().sum(), [prefix_k, prefix_v])
    expected = torch.autograd.grad(expected.square().sum(), [prefix_k, prefix_v])
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-12)
    with torch.no_grad():
        torch.testing.assert_close(attend(q, kv, prefix_k, prefix_v, packing), out)


def test_autocast():
    """Mixed precision runs both ways, near the exact result."""
    leaves = [x.detach().bfloat16().requires_grad_() for x in inputs(2, False)]
    packing = Packing(LENGTHS, torch.device("cpu"))
    exact = attend(*leaves, packing)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = attend(*leaves, packing)
    assert out.dtype == torch.bfloat16
    assert (out - exact).abs().max() < 0.05 * exact.abs().max()
    for a, b in zip(
        torch.autograd.grad(out.float().sum(), leaves),
        torch.autograd.grad(exact.float().sum(), leaves),
        strict=True,
    ):
        assert (a - b).abs().max() <= 0.05 * b.abs().max()


@pytest.mark.parametrize("grad", [True, False])
def test_mapped_over_runs(grad):
    """Several runs at once (torch.func.vmap) give what each gives; suffixes may be shared."""
    packing = Packing(LENGTHS, torch.device("cpu"))
    q, kv = (x.detach() for x in inputs(1, False)[:2])
    runs = [random(3, 1, HEADS, PREFIX, SIZE, seed=seed).requires_grad_() for seed in (6, 7)]
    with torch.set_grad_enabled(grad):
        out = torch.func.vmap(lambda k, v: attend(q, kv, k, v, packing))(*runs)
        apart = torch.stack([attend(q, kv, k, v, packing) for k, v in zip(*runs, strict=True)])
    torch.testing.assert_close(out, apart, rtol=0, atol=1e-13)
    if grad:
        actual = torch.autograd.grad(out.square().sum(), runs)
        torch.testing.assert_close(actual, torch.autograd.grad(apart.square().sum(), runs))


def test_tokens_are_found_where_they_lie():
    packing = Packing([2, 3], torch.device("cpu"))
    tokens = torch.tensor([10, 11, 20, 21, 22])
    both = torch.cat([tokens, torch.tensor([1, 2, 3, 4])])  # two new ones for each
    assert tokens[packing.places(1, 1)].tolist() == [11, 21]
    assert both[packing.splice(1, 2, True)].tolist() == [10, 1, 2, 11, 20, 3, 4, 21, 22]
    assert both[packing.splice(0, 2, False)].tolist() == [1, 2, 3, 4, 22]
    whole = torch.cat([torch.tensor([7]), tokens, torch.tensor([0])])[packing.whole(1, 5)]
    assert whole.view(2, 5).tolist() == [[7, 10, 11, 0, 0], [7, 20, 21, 22, 0]]
