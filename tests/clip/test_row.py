"""Attention in one row against its definition, token by token."""

import pytest
import torch
import torch.nn.functional as F

from clip.row import Row, attend_row

HEADS, SIZE = 2, 8
WIDTH = HEADS * SIZE
CPU = torch.device("cpu")
LENGTHS = [3, 3, 4, 5, 7]
PREFIXES = [3, 7, 9]  # less than the longest suffix, as much, and more


def inputs(prefix: int, contexts: int = 2, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    generator = torch.Generator().manual_seed(prefix)
    shape = (contexts, prefix + sum(LENGTHS), 3 * WIDTH)
    return torch.randn(*shape, generator=generator, dtype=dtype).requires_grad_()


def by_definition(qkv: torch.Tensor, prefix: int) -> torch.Tensor:
    """Each suffix behind the prefix as a sequence of its own; the prefix of any of them."""
    out, start = [], prefix
    for length in LENGTHS:
        x = torch.cat([qkv[:, :prefix], qkv[:, start : start + length]], dim=1)
        q, k, v = x.unflatten(-1, (3, HEADS, SIZE)).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        mixed = mixed.transpose(1, 2).flatten(2)
        out.append(mixed[:, prefix:] if out else mixed)
        start += length
    return torch.cat(out, dim=1)


@pytest.mark.parametrize("prefix", PREFIXES)
@pytest.mark.parametrize("contexts", [1, 2])
def test_attention_in_a_row(prefix, contexts):
    qkv = inputs(prefix, contexts)
    out = attend_row(qkv, HEADS, Row(prefix, LENGTHS, CPU))
    expected = by_definition(qkv, prefix)
    torch.testing.assert_close(out, expected, rtol=0, atol=1e-13)
    weights = torch.randn(out.shape, dtype=out.dtype)
    actual, wanted = (torch.autograd.grad((y * weights).sum(), qkv)[0] for y in (out, expected))
    torch.testing.assert_close(actual, wanted, rtol=0, atol=1e-13)


def test_autocast():
    """Mixed precision runs both ways, near the exact result."""
    exact = inputs(3)
    leaf = exact.detach().bfloat16().requires_grad_()
    row = Row(3, LENGTHS, CPU)
    expected = attend_row(exact, HEADS, row)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = attend_row(leaf, HEADS, row)
    assert out.dtype == torch.bfloat16
    assert (out - expected).abs().max() < 0.05 * expected.abs().max()
    (actual,) = torch.autograd.grad(out.float().sum(), leaf)
    (wanted,) = torch.autograd.grad(expected.sum(), exact)
    assert (actual - wanted).abs().max() < 0.05 * wanted.abs().max()


@pytest.mark.parametrize("grad", [True, False])
def test_mapped_over_runs(grad):
    """Several runs at once (torch.func.vmap) give what each gives."""
    row = Row(3, LENGTHS, CPU)
    runs = torch.stack([inputs(3).detach() + i for i in range(3)], dim=1).requires_grad_()
    with torch.set_grad_enabled(grad):
        out = torch.func.vmap(lambda x: attend_row(x, HEADS, row), in_dims=1)(runs)
        apart = torch.stack([attend_row(x, HEADS, row) for x in runs.unbind(1)])
    torch.testing.assert_close(out, apart, rtol=0, atol=1e-13)
    if grad:
        actual, wanted = (torch.autograd.grad(y.square().sum(), runs)[0] for y in (out, apart))
        torch.testing.assert_close(actual, wanted)


def test_nothing_that_is_unseen_reaches_a_token():
    """A token's output has no gradient with respect to later tokens, or to other classes'."""
    qkv = inputs(3, 1)
    out = attend_row(qkv, HEADS, Row(3, LENGTHS, CPU))
    starts = [3, 6, 9, 13, 18]
    (grad,) = torch.autograd.grad(out[0, starts[3] + 1].sum(), qkv)
    reached = grad[0].abs().sum(dim=-1).nonzero().flatten().tolist()
    assert reached == [0, 1, 2, starts[3], starts[3] + 1]
