"""The tiny CLIP with fainter words: the same function, but for LayerNorm's ε."""

from __future__ import annotations

import sys

import pytest
import torch
from torch import nn

import clip
from clip.model import build_model
from dassl.utils import UserError
from dassl.utils.tensor_files import read_tensors
from mini_world import pretraining_command as command
from mini_world.rescaling import rescaled


def in_double(state, deviation=None):
    state = {name: tensor.to_dense().double() for name, tensor in state.items()}
    state = rescaled(state, deviation) if deviation else state
    model = build_model(state).double().eval()
    model.load_state_dict(state)  # building rounds matrices to fp16
    return model


@torch.no_grad()
def test_features_are_the_same():
    shipped = read_tensors(command.SHIPPED)
    ids = clip.tokenize(["a photo of a red star.", "tree on snow", "X X X plaid blue star."])
    image = torch.randn(2, 3, 48, 48, generator=torch.Generator().manual_seed(0)).double()
    plain, faint = in_double(shipped), in_double(shipped, 0.01)
    rows = faint.token_embedding.weight
    assert float(rows[rows.any(dim=1)].std().detach()) == pytest.approx(0.01, rel=1e-4)
    assert (faint.encode_image(image) == plain.encode_image(image)).all()
    before, after = plain.encode_text(ids), faint.encode_text(ids)
    assert torch.cosine_similarity(before, after).min() > 0.999  # ε is as it was
    factor = float(faint.positional_embedding[0, 0] / plain.positional_embedding[0, 0])
    for module in faint.modules():
        if isinstance(module, nn.LayerNorm):
            module.eps *= factor**2
    assert (before - faint.encode_text(ids)).abs().max() < 1e-5


def test_the_command_writes_a_backbone(tmp_path, monkeypatch):
    file = tmp_path / "faint.pt"
    monkeypatch.setattr(sys, "argv", ["x", "--rescale", "0.01", "--out", str(file)])
    command.main()
    model, _ = clip.load(str(file), device="cpu")
    rows = model.token_embedding.weight
    assert float(rows[rows.any(dim=1)].std().detach()) == pytest.approx(0.01, rel=1e-2)


def test_a_deviation_that_is_none():
    with pytest.raises(UserError, match="above 0"):
        command.parse(["--rescale", "0", "--out", "x"])
