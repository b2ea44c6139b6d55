"""CLIP's encoders with prompts: the text tower takes context vectors, the image tower prompts.

This package alone knows how to be fast. Each encoder has two paths with the same numbers:

plain  C × 77 tokens through every layer, as CLIP's own `encode_text`; the oracle of tests and
       benchmarks.
fast   The text tower is causal and read at EOT. So (1) nothing after EOT is computed; (2) the
       prefix [SOS][context][words] is the same for every class at every layer (deep prompts
       included) and is computed once, each class adding only its own suffix, which attends to the
       prefix' keys and values; (3) suffixes lie packed side by side, without padding; (4) the last
       layer is computed at EOT (text) or at the class token (image) alone; (5) the frozen weights
       need no gradients, so that a block keeps less for its backward pass, and on a CPU the faster
       library computes their products (../fused.py, ../packed.py).
       Contexts that differ per class, or names before or amid the context, share no prefix: there
       the fast path is (1), (4) and the MLP of (5).

What else a tower is to do inside, a method tells as data (changes.py): tokens, branches, changed
weights, reads. Both paths do all of it. On the fast one the prefix is shared up to the layer where
classes differ in it, and only the parts of a block that are changed lose (5). `below` and `above`
cut a pass in two at a layer: what nothing trained reaches is computed once and kept.

Letters in shape comments: B images, I pixels a side; K contexts side by side (the images of a batch
when each has its own); C classes; M context tokens; P prefix tokens; S suffix tokens of all
classes; L tokens; N prompts per layer; J prompted layers; W tower width; D embedding width; H
heads.
"""

from .changes import (
    END,
    Branch,
    Change,
    LowRank,
    NameShift,
    Read,
    Reads,
    Tokens,
    Weights,
    first_layer,
)
from .encoders import Encoders
from .image import ImageEncoder
from .layout import PromptLayout
from .text import TextEncoder, TextState

__all__ = [
    "END",
    "Branch",
    "Change",
    "Encoders",
    "ImageEncoder",
    "LowRank",
    "NameShift",
    "PromptLayout",
    "Read",
    "Reads",
    "TextEncoder",
    "TextState",
    "Tokens",
    "Weights",
    "first_layer",
]
