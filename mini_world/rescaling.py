"""The tiny CLIP with word embeddings of another standard deviation: the same function, nearly.

The embeddings and positions that the text tower starts from, and what each block adds to them, are
multiplied by one factor. Blocks and the tower's end begin with a LayerNorm, which sees nothing of
the factor but by its ε. A learned context sees it: of a given deviation, it is the louder a part
of a prompt the fainter the words are.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch

# What is put on the stream of a text token, from the start and by a block.
ON_THE_STREAM = re.compile(
    r"token_embedding\.weight|positional_embedding"
    r"|transformer\.resblocks\.\d+\.(attn\.out_proj|mlp\.c_proj)\.(weight|bias)"
)


def rescaled(state: Mapping[str, torch.Tensor], deviation: float) -> dict[str, torch.Tensor]:
    """A state dict in OpenAI's names whose known words' embeddings have this standard deviation.

    deviation: over all entries of the rows that aren't zero, above 0.
    """
    rows = state["token_embedding.weight"].to_dense().float()
    factor = deviation / float(rows[rows.any(dim=1)].std())
    return {
        name: (tensor.to_dense().double() * factor).to(tensor.dtype)
        if ON_THE_STREAM.fullmatch(name)
        else tensor
        for name, tensor in state.items()
    }
