"""Where everything stands in a prompt, token by token, written out by hand."""

from __future__ import annotations

import pytest
import torch

from clip.prompting import Encoders, PromptLayout
from tests.conftest import tiny_clip

SOS, EOT, DOT = 49406, 49407, 269
CAT, BROWN, BEAR = [2368], 2866, 4298
A, PHOTO, OF = 320, 1125, 539


def written(layout: PromptLayout, row: int) -> list[int | str]:
    """A prompt up to EOT: token ids, and c0, c1 … for the context's vectors."""
    end = int(layout.eot[row]) + 1
    pairs = zip(layout.tokens[row, :end].tolist(), layout.slots[row, :end].tolist(), strict=True)
    assert not layout.tokens[row, end:].any() and (layout.slots[row, end:] == -1).all()
    return [token if slot < 0 else f"c{slot}" for token, slot in pairs]


# n, position, frozen words, the prompts of "cat" and "brown_bear".
LAYOUTS = [
    (
        *(3, "end", []),
        [SOS, "c0", "c1", "c2", *CAT, DOT, EOT],
        [SOS, "c0", "c1", "c2", BROWN, BEAR, DOT, EOT],
    ),
    (
        *(4, "middle", []),
        [SOS, "c0", "c1", *CAT, "c2", "c3", DOT, EOT],
        [SOS, "c0", "c1", BROWN, BEAR, "c2", "c3", DOT, EOT],
    ),
    (
        *(5, "middle", []),  # the smaller half before the name
        [SOS, "c0", "c1", *CAT, "c2", "c3", "c4", DOT, EOT],
        [SOS, "c0", "c1", BROWN, BEAR, "c2", "c3", "c4", DOT, EOT],
    ),
    (
        *(1, "middle", []),
        [SOS, *CAT, "c0", DOT, EOT],
        [SOS, BROWN, BEAR, "c0", DOT, EOT],
    ),
    (
        *(2, "front", []),
        [SOS, *CAT, "c0", "c1", DOT, EOT],
        [SOS, BROWN, BEAR, "c0", "c1", DOT, EOT],
    ),
    (
        *(2, "end", [OF, A]),
        [SOS, "c0", "c1", OF, A, *CAT, DOT, EOT],
        [SOS, "c0", "c1", OF, A, BROWN, BEAR, DOT, EOT],
    ),
    (
        *(0, "end", []),
        [SOS, *CAT, DOT, EOT],
        [SOS, BROWN, BEAR, DOT, EOT],
    ),
]


@pytest.mark.parametrize("n,position,words,cat,bear", LAYOUTS)
def test_prompts_by_hand(n, position, words, cat, bear):
    layout = PromptLayout(["brown_bear", "cat"], n, position, words=words)
    assert written(layout, 0) == bear and written(layout, 1) == cat
    assert layout.prefix_length == (1 + n + len(words) if position == "end" else 0)
    assert layout.eot.tolist() == [len(bear) - 1, len(cat) - 1]
    assert layout.tokens.shape == layout.slots.shape == (2, 77) and len(layout) == 2
    # The fast path's order: shorter prompts first.
    assert layout.order.tolist() == [1, 0] == layout.inverse.tolist()
    assert layout.lengths == [len(cat) - layout.prefix_length, len(bear) - layout.prefix_length]


def test_finished_sentences_by_hand():
    layout = PromptLayout.of_texts(["a photo of a cat.", "cat"])
    assert written(layout, 0) == [SOS, A, PHOTO, OF, A, *CAT, DOT, EOT]
    assert written(layout, 1) == [SOS, *CAT, EOT]
    assert layout.n_ctx == 0 and layout.prefix_length == 1


def test_suffixes_by_hand():
    layout = PromptLayout(["brown_bear", "cat", "ant"], 2)
    ids = [2368, DOT, EOT, 773, DOT, EOT, BROWN, BEAR, DOT, EOT]
    assert layout.suffix_ids.tolist() == ids
    assert layout.suffix_positions.tolist() == [3, 4, 5, 3, 4, 5, 3, 4, 5, 6]
    assert layout.suffix_tokens(1, 3) == slice(3, 10)
    assert layout.suffix_tokens(0, 2) == slice(0, 6)
    assert (layout.shortest, layout.longest) == (6, 7)


def test_the_longest_prompt_that_fits():
    name = " ".join(["cat"] * 70)
    assert PromptLayout([name], 4).eot.tolist() == [76]
    with pytest.raises(Exception, match="has 78 tokens with 5 for the context, .* takes 77"):
        PromptLayout([name], 5)


@pytest.mark.parametrize("position", ["end", "middle", "front"])
@pytest.mark.parametrize("n", [3, 4])
@pytest.mark.parametrize("fast", [True, False])
def test_features_of_a_prompt_written_out(n, position, fast):
    """The tower run over embeddings put together here: no layout, no path of ours."""
    model = tiny_clip().double()
    ctx = torch.randn(n, 64, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    encoder = Encoders(model, fast).text
    layout = encoder.layout(["brown_bear", "cat"], n, position)
    half = n // 2
    expected = []
    for name in ([BROWN, BEAR], CAT):
        before, behind = {"end": (n, 0), "middle": (half, n - half), "front": (0, n)}[position]
        word = lambda ids: model.token_embedding(torch.tensor(ids))  # noqa: E731
        x = torch.cat([word([SOS]), ctx[:before], word(name), ctx[n - behind :], word([DOT, EOT])])
        x = (x + model.positional_embedding[: len(x)]).unsqueeze(1)
        length = len(x)
        mask = torch.full((length, length), float("-inf"), dtype=torch.float64).triu(1)
        for block in model.transformer.resblocks:
            y = block.ln_1(x)
            x = x + block.attn(y, y, y, need_weights=False, attn_mask=mask)[0]
            x = x + block.mlp(block.ln_2(x))
        expected.append(model.ln_final(x[-1, 0]) @ model.text_projection)
    with torch.no_grad():
        torch.testing.assert_close(encoder(layout, ctx), torch.stack(expected))


def test_temperature_and_sizes():
    model = tiny_clip()
    encoders = Encoders(model)
    torch.testing.assert_close(encoders.temperature, model.logit_scale.exp())
    assert encoders.temperature.item() == pytest.approx(1 / 0.07)  # a fresh CLIP's
    assert encoders.embed_dim == 32
    assert (encoders.text.width, encoders.text.layers) == (64, 3)
    assert (encoders.image.width, encoders.image.layers) == (64, 3)
    assert not any(p.requires_grad for p in encoders.parameters())
    half = Encoders(tiny_clip().half())
    assert half.temperature.dtype == torch.float32
    assert encoders.text.embed([A]).dtype == torch.float32
    assert encoders.text.token_ids("a photo of a") == [A, PHOTO, OF, A]
