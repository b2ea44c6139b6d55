"""The fused parts of a block against autograd's own arithmetic."""

import pytest
import torch
import torch.nn.functional as F

from clip import fused
from clip.fused import linear, mlp
from clip.model import ResidualAttentionBlock
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


def block() -> ResidualAttentionBlock:
    torch.manual_seed(0)
    return ResidualAttentionBlock(WIDTH, HEADS).double()


@pytest.fixture
def large(monkeypatch):
    """A frozen block and inputs (3,R,n,W) of R runs, fp32, whose products are oneDNN's."""
    if not fused.has_onednn():
        pytest.skip("this PyTorch has no oneDNN beside MKL")
    monkeypatch.setattr(fused, "_LARGE", 1 << 24)
    torch.manual_seed(0)
    frozen = ResidualAttentionBlock(256, 4).requires_grad_(False)
    x = random(3, 2, 128, 256).float().requires_grad_()
    products = [frozen.attn.in_proj_weight, frozen.mlp.c_fc.weight, frozen.mlp.c_proj.weight.t()]
    assert all(fused._onednn(x[:, 0], weight) for weight in products)
    return frozen, x


PARTS = {
    "linear": lambda frozen, x: linear(x, frozen.attn.in_proj_weight, frozen.attn.in_proj_bias),
    "no bias": lambda frozen, x: linear(x, frozen.attn.in_proj_weight, None),
    "mlp": lambda frozen, x: mlp(frozen.mlp, x),
}


@pytest.mark.filterwarnings("ignore:TF32")
@pytest.mark.parametrize("part", PARTS.values(), ids=PARTS)
def test_large_products_by_another_library(part, large):
    frozen, x = large
    weights = random(*part(frozen, x).shape, seed=5).float()

    def results(call, x):
        out = call(x)
        with torch.no_grad():
            again = call(x)
        return out, again, torch.autograd.grad((out * weights).sum(), x)[0]

    with torch.backends.mkldnn.flags(enabled=False):
        expected = results(lambda x: part(frozen, x), x)
    exact = results(lambda x: part(frozen.double(), x), x.double())
    frozen.float()
    mapped = torch.func.vmap(lambda x: part(frozen, x), in_dims=1, out_dims=1)
    for call in (lambda x: part(frozen, x), mapped):
        for actual, default, true in zip(results(call, x), expected, exact, strict=True):
            scale = true.abs().max()
            assert (actual - true).abs().max() < 2e-6 * scale
            assert (actual - default).abs().max() < 2e-6 * scale


@pytest.mark.filterwarnings("ignore:TF32")
@pytest.mark.parametrize("case", ["small", "double", "trained", "autocast", "switched off"])
def test_other_products_stay_with_pytorch(case, large):
    frozen, x = large
    weight = frozen.attn.in_proj_weight
    x = x[:, :, :8] if case == "small" else x.double() if case == "double" else x
    weight = weight.double() if case == "double" else weight
    weight = weight.clone().requires_grad_() if case == "trained" else weight
    with (
        torch.autocast("cpu", dtype=torch.bfloat16, enabled=case == "autocast"),
        torch.backends.mkldnn.flags(enabled=case != "switched off"),
    ):
        assert not fused._onednn(x, weight)
        assert torch.equal(linear(x, weight, None), F.linear(x, weight))


def test_mlp_of_a_frozen_block():
    layers = block().requires_grad_(False).mlp
    x = random(2, 5, WIDTH).requires_grad_()
    out, expected = mlp(layers, x), layers(x)
    torch.testing.assert_close(out, expected, rtol=0, atol=1e-14)
    weights = random(*out.shape, seed=5)
    (actual,) = torch.autograd.grad((out * weights).sum(), x)
    (expected,) = torch.autograd.grad((expected * weights).sum(), x)
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-14)
    before = x.detach().clone()
    with torch.no_grad():
        torch.testing.assert_close(mlp(layers, x), out, rtol=0, atol=1e-14)
    assert torch.equal(x, before)


@pytest.mark.parametrize("kind", ["weight", "bias", ""])
def test_mlp_of_a_trained_block_trains_it(kind):
    layers = block().requires_grad_(False).mlp
    trained = [p.requires_grad_() for name, p in layers.named_parameters() if kind in name]
    mlp(layers, random(3, WIDTH)).sum().backward()
    assert trained and all(p.grad is not None for p in trained)


def test_a_trained_bias_beside_a_frozen_weight_is_trained(large):
    frozen, x = large
    bias = frozen.attn.in_proj_bias.clone().requires_grad_()
    linear(x, frozen.attn.in_proj_weight, bias).sum().backward()
    torch.testing.assert_close(bias.grad, torch.full_like(bias, x[..., 0].numel()))


def test_mlp_keeps_less_for_the_backward_pass():
    layers = block().requires_grad_(False).mlp
    x = random(7, WIDTH).requires_grad_()

    def kept(call) -> int:
        sizes = {}
        weights = {p.data_ptr() for p in layers.parameters()}

        def pack(tensor):
            if tensor.data_ptr() not in weights:
                sizes[tensor.data_ptr()] = tensor.numel()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            out = call(x)  # noqa: F841  (holds the graph)
        return sum(sizes.values())

    assert kept(lambda x: mlp(layers, x)) == 7 * 4 * WIDTH < kept(layers)


@pytest.mark.parametrize("part", ["mlp", "attend"])
def test_autocast(part):
    """Mixed precision runs both ways, near the exact result."""
    if part == "mlp":
        layers = block().float().requires_grad_(False).mlp
        leaves = [random(5, WIDTH).float().requires_grad_()]

        def call(x):
            return mlp(layers, x)
    else:
        leaves = [x.detach().bfloat16().requires_grad_() for x in inputs(2, False)]
        packing = Packing(LENGTHS, torch.device("cpu"))

        def call(*x):
            return attend(*x, packing)

    exact = call(*leaves)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = call(*leaves)
    assert out.dtype == torch.bfloat16
    assert (out - exact).abs().max() < 0.05 * exact.abs().max()
    for a, b in zip(
        torch.autograd.grad(out.float().sum(), leaves),
        torch.autograd.grad(exact.float().sum(), leaves),
        strict=True,
    ):
        assert (a - b).abs().max() <= 0.05 * b.abs().max()


def test_mapped_over_runs():
    """Several runs at once (torch.func.vmap) give what each gives; suffixes may be shared."""
    packing = Packing(LENGTHS, torch.device("cpu"))
    q, kv = (x.detach() for x in inputs(1, False)[:2])
    runs = [random(3, 1, HEADS, PREFIX, SIZE, seed=seed).requires_grad_() for seed in (6, 7)]
    out = torch.func.vmap(lambda k, v: attend(q, kv, k, v, packing))(*runs)
    apart = torch.stack([attend(q, kv, k, v, packing) for k, v in zip(*runs, strict=True)])
    torch.testing.assert_close(out, apart, rtol=0, atol=1e-13)
    actual = torch.autograd.grad(out.square().sum(), runs)
    torch.testing.assert_close(actual, torch.autograd.grad(apart.square().sum(), runs))

    layers = block().requires_grad_(False).mlp
    x = random(2, 5, 3, WIDTH).requires_grad_()
    out = torch.func.vmap(lambda x: mlp(layers, x), in_dims=1, out_dims=1)(x)
    torch.testing.assert_close(out, layers(x), rtol=0, atol=1e-14)
    actual = torch.autograd.grad(out.square().sum(), x)
    torch.testing.assert_close(actual, torch.autograd.grad(layers(x).square().sum(), x))
