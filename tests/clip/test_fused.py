"""The fused parts of a block against autograd's own arithmetic."""

import pytest
import torch
import torch.nn.functional as F

from clip import fused
from clip.fused import linear, mlp, recomputed
from clip.model import ResidualAttentionBlock

HEADS, WIDTH = 2, 16


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


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


def test_autocast():
    """Mixed precision runs both ways, near the exact result."""
    layers = block().float().requires_grad_(False).mlp
    x = random(5, WIDTH).float().requires_grad_()
    exact = mlp(layers, x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = mlp(layers, x)
    assert out.dtype == torch.bfloat16
    assert (out - exact).abs().max() < 0.05 * exact.abs().max()
    (actual,), (expected,) = (torch.autograd.grad(y.float().sum(), [x]) for y in (out, exact))
    assert (actual - expected).abs().max() <= 0.05 * expected.abs().max()


def test_mapped_over_runs():
    """Several runs at once (torch.func.vmap) give what each gives."""
    layers = block().requires_grad_(False).mlp
    x = random(2, 5, 3, WIDTH).requires_grad_()
    out = torch.func.vmap(lambda x: mlp(layers, x), in_dims=1, out_dims=1)(x)
    torch.testing.assert_close(out, layers(x), rtol=0, atol=1e-14)
    actual = torch.autograd.grad(out.square().sum(), x)
    torch.testing.assert_close(actual, torch.autograd.grad(layers(x).square().sum(), x))


@pytest.mark.filterwarnings("ignore:TF32")
@pytest.mark.parametrize("common", [True, False])
def test_runs_with_weights_of_their_own(large, common):
    """Without gradients too, where nothing says that a mapped weight isn't the frozen one."""
    frozen, x = large
    weight = frozen.attn.in_proj_weight
    weights, x = torch.stack([weight, 2 * weight]), x.detach()
    x = x[:, :1].expand(-1, 2, -1, -1) if common else x
    dims = (None, 0) if common else (1, 0)
    assert fused._onednn(x[:, 0], weight)
    out = torch.func.vmap(lambda x, w: linear(x, w, None), dims)(x[:, 0] if common else x, weights)
    expected = torch.stack([F.linear(x[:, r], weights[r]) for r in range(2)])
    torch.testing.assert_close(out, expected, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("runs", [None, 2])
def test_recomputation_keeps_the_inputs_alone(runs):
    """Several outputs, an input that none uses, one that wants no gradient; and mapped."""
    lead = () if runs is None else (runs,)
    x, w, fixed = (random(*lead, 4, 4, seed=seed) for seed in range(3))
    unused = random(*lead, 2, seed=3)
    leaves = [t.requires_grad_() for t in (x, w, unused)]

    def call(x, w, unused, fixed):
        return torch.tanh(x @ w) @ fixed, x.detach() * 2, torch.exp(w)

    def total(run):
        run = torch.func.vmap(run) if runs else run
        outputs = run(x, w, unused, fixed)
        return outputs, sum((random(*y.shape, seed=7) * y).sum() for y in outputs)

    outputs, loss = total(lambda *inputs: recomputed(call, *inputs))
    expected, plain = total(call)
    torch.testing.assert_close(outputs, expected)
    actual = torch.autograd.grad(loss, leaves, allow_unused=True)
    expected = torch.autograd.grad(plain, leaves, allow_unused=True)
    torch.testing.assert_close(actual[:2], expected[:2])
    assert expected[2] is None and (actual[2] is None or not actual[2].any())
