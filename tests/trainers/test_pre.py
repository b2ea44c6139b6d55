"""PRE's network, and what it starts from."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from dassl.utils import UserError
from trainers.pre import TokenEncoder, TokenLSTM


@pytest.mark.parametrize("layers", [1, 2])
def test_the_lstm_is_torchs(layers):
    torch.manual_seed(1)
    theirs = nn.LSTM(16, 8, layers, bidirectional=True, dropout=0.05 if layers > 1 else 0).eval()
    ours = TokenLSTM(16, layers).eval()
    assert {k: v.shape for k, v in ours.state_dict().items()} == {
        k: v.shape for k, v in theirs.state_dict().items()
    }
    assert all(p.abs().max() <= 8**-0.5 and p.std() > 0.1 for p in ours.parameters())
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(5, 16)
    found, expected = ours(x), theirs(x)[0]
    torch.testing.assert_close(found, expected)
    for output in (found, expected):
        output.square().sum().backward()
    for name, parameter in theirs.named_parameters():
        torch.testing.assert_close(ours.get_parameter(name).grad, parameter.grad)


def test_numbers_of_the_paper():
    """ViT-B/16's text tower: the network's, and with V₀ all that is trained."""
    network = sum(p.numel() for p in TokenEncoder("LSTM1", 512).parameters())
    assert (network, network + 4 * 512) == (1_576_960, 1_579_008)


def test_without_its_network_it_is_the_hand_written_prompt(make_trainer):
    """V = V₀ where R = 0: then the first loss is that of "a photo of a {}."."""
    trainer = make_trainer("PRE")
    method = trainer.method
    image, label = trainer.parse_batch_train(next(iter(trainer.train_loader_x)))
    hand = method.encoders.text.encode(method.classes.sentences("a photo of a {}."))
    with torch.no_grad():
        f = F.normalize(method.encoders.image(image), dim=-1)
        expected = F.cross_entropy(
            method.encoders.temperature * f @ F.normalize(hand, dim=-1).t(), label
        )
        started = method.losses(method.features(image), label)["itm"]
        for parameter in method.context.encoder_network.parameters():
            parameter.zero_()
        found = method.losses(method.features(image), label)["itm"]
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    assert not torch.isclose(started, expected)


def test_variants(make_trainer):
    def context(**options):
        options = {f"TRAINER__PRE__{key}": value for key, value in options.items()}
        return make_trainer("PRE", **options).method.context

    with torch.no_grad():
        mlp = context(ENCODER="MLP2")
        first, _, second = mlp.encoder_network.module
        x = mlp.ctx
        for _ in range(2):
            x = second(F.relu(first(x)))
        torch.testing.assert_close(mlp(), mlp.ctx + x)
        bare = context(RESIDUAL=False)
        torch.testing.assert_close(bare(), bare.encoder_network.lstm_head(bare.ctx))
        separate = context(SEPARATE=True)
        networks = separate.encoder_network
        each = [network(separate.ctx[i : i + 1]) for i, network in enumerate(networks)]
        torch.testing.assert_close(separate(), torch.cat(each))
        assert not torch.equal(each[1], each[0])
        assert context(CTX_INIT="", N_CTX=1)().shape == (1, 64)


def test_networks_for_each_token_are_trained_and_saved(make_trainer):
    trainer = make_trainer("PRE", TRAINER__PRE__SEPARATE=True)
    names = set(trainer.method.trained())
    assert {f"context.encoder_network.{i}.lstm_head.weight_ih_l0" for i in range(4)} <= names


def test_what_it_refuses(make_trainer):
    with pytest.raises(UserError, match="LSTM3"):
        make_trainer("PRE", TRAINER__PRE__ENCODER="LSTM3")
    with pytest.raises(UserError, match="one context for all classes"):
        make_trainer("PRE", TRAINER__PRE__CSC=True)
    assert make_trainer("PRE", TRAINER__PRE__CSC=False).method
