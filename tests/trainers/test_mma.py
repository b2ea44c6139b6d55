"""MMA: what its gradient is, where it starts, which blocks there are."""

import pytest
import torch
import torch.nn.functional as F

from dassl.utils import UserError
from trainers.mma import Adapter, Adapters


@pytest.fixture
def adapters():
    torch.manual_seed(0)
    return Adapters([2], (12, 10), dim=4).double()


def test_an_adapter_by_its_equation(adapters):
    own, shared = adapters.visual_adapter["2"], adapters.shared_adapter["2"]
    x = torch.randn(3, 10, dtype=torch.float64)
    down, up, middle = own["down"][0], own["up"], shared[0]
    with torch.no_grad():
        down.bias.uniform_(0.1, 0.5)
        middle.bias.uniform_(0.1, 0.5)
        up.bias.uniform_(0.1, 0.5)
    hidden = F.relu(F.relu(x @ down.weight.t() + down.bias) @ middle.weight.t() + middle.bias)
    expected = 0.25 * (hidden @ up.weight.t() + up.bias)
    torch.testing.assert_close(Adapter(own, shared, 0.25)(x), expected)


def test_what_is_trained_gets_the_gradient_as_if_s_were_one(adapters):
    """And what lies below the true one."""
    own, shared = adapters.text_adapter["2"], adapters.shared_adapter["2"]
    weights = [*own.parameters(), *shared.parameters()]
    gradients = []
    for scale in (1.0, 0.01):
        x = torch.linspace(-1, 1, 36, dtype=torch.float64).reshape(3, 12).requires_grad_()
        total = (Adapter(own, shared, scale)(x) * torch.arange(12.0).double()).sum()
        gradients.append(torch.autograd.grad(total, [x, *weights]))
    (of_x, *trained), (scaled_of_x, *scaled) = gradients
    assert of_x.abs().max() > 0 and all(g.abs().max() > 0 for g in trained)
    torch.testing.assert_close(scaled_of_x, 0.01 * of_x)
    for one, other in zip(trained, scaled, strict=True):
        torch.testing.assert_close(other, one)


def test_with_a_small_s_it_starts_as_clip(make_trainer):
    """And the sentences are "a photo of a {}.", whatever the data set's are."""
    options = {"TRAINER__MMADAPTER__ADAPTER_SCALE": 1e-6, "DATASET__TEMPLATE": "art of {}."}
    method = make_trainer("MMA", **options).method.eval()
    image = torch.randn(2, 3, 32, 32)
    sentences = method.classes.sentences("a photo of a {}.")
    with torch.no_grad():
        found = method.features(image)
        expected = method.encoders.image(image), method.encoders.text.encode(sentences)
    torch.testing.assert_close(found.image, expected[0], rtol=0, atol=1e-5)
    torch.testing.assert_close(found.text, expected[1], rtol=0, atol=1e-5)


def test_weights_start_kaiming_normal():
    linear = Adapters([5], (64, 256), dim=32).text_adapter["5"]["down"][0]
    assert linear.weight.std().item() == pytest.approx((2 / 32) ** 0.5, rel=0.1)
    assert not linear.bias.any()


@pytest.mark.parametrize(("start", "end"), [(2, 4), (3, 2)])
def test_blocks_that_are_not_there_are_refused(make_trainer, start, end):
    options = {"ADAPTER_START": start, "ADAPTER_END": end}
    with pytest.raises(UserError, match=f"blocks {start} to {end}; the towers have 1 to 3"):
        make_trainer("MMA", **{f"TRAINER__MMADAPTER__{k}": v for k, v in options.items()})


def test_the_released_sizes():
    widths = {"text": 512, "visual": 768}
    made = Adapters(range(5, 13), tuple(widths.values()))
    assert sum(p.numel() for p in made.parameters()) == 674_560
