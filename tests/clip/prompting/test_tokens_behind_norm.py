"""Tokens of an image's layer 0, before or behind ln_pre."""

import pytest
import torch

from clip.prompting import Encoders, Tokens
from dassl.utils import UserError
from tests.conftest import tiny_clip


@pytest.mark.parametrize("fast", [True, False])
@torch.no_grad()
def test_ln_pre_is_each_tokens_own(fast):
    encoder = Encoders(tiny_clip().double(), fast).image
    image = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    vectors = torch.linspace(0, 9, 192, dtype=torch.float64).reshape(3, 64)
    before = encoder(image, changes=[Tokens(0, vectors, insert=True)])
    normed = encoder.vit.ln_pre(vectors)
    behind = encoder(image, changes=[Tokens(0, normed, insert=True, normed=True)])
    torch.testing.assert_close(before, behind, rtol=1e-10, atol=1e-10)
    bare = encoder(image, changes=[Tokens(0, vectors, insert=True, normed=True)])
    assert not torch.allclose(before, bare)


def test_only_layer_0_has_such_a_norm():
    with pytest.raises(UserError, match="only before layer 0"):
        Tokens(1, torch.zeros(1, 64), normed=True)
