"""IPT on CLIP, after Instance-wise Prompt Tuning (arXiv 2206.01958). Adaptation: ours.

The paper tunes language models: each input has prompts of its own, made of its tokens. It wasn't
read; its code (IPT-Prompttuning/IPT) was. There the input's first k tokens are looked up in a
trained table with a row for each word of the vocabulary, as wide as an embedding; a text CNN, an
MLP or an LSTM may follow, pre-trained or not; the k vectors go in front of the input's embeddings.
An image has no vocabulary, so the table has no counterpart here. No result on CLIP was published.

Here the input is the image: its prompts come from its own tokens and go into the same tower. With
T (G²,d_v) the patch tokens before layer l of the frozen tower,

    keys  the k tokens with the largest cosine to the mean of T, in the image's order
    p     = W₂ GELU(conv(W₁ LN(keys) + b₁)) + b₂,   (k,d_v); W₁ (h,d_v), W₂ (d_v,h)

with conv one filter of width 3 per channel along the k tokens; p is put in before layer l, to stay.
The text is frozen, the loss cross entropy. W₂ and b₂ start at zero. Zero tokens still take their
share of attention: PLACE "insert" does not start as the hand-written prompt. With "add" p is
added to the key tokens themselves, and the start is the hand-written prompt exactly. What lies
below layer l is computed once per view. Its controls are VPT, whose prompts are the same for all
images, and CoCoOp, which has an image's prompts on the text side.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from clip.prompting import Encoders, Tokens
from dassl.config import CfgNode, declare_checks, whole
from dassl.engine import TRAINER_REGISTRY
from dassl.utils import UserError, check_choice
from tuning.claims import Claim, Row
from tuning.method import Classes, Method
from tuning.prompts import WORDS, public_words, template_of
from tuning.trainer import PromptTrainer

PLACES = ("insert", "add")


def extend_cfg(cfg: CfgNode) -> None:
    """Declare TRAINER.IPT."""
    cfg.TRAINER.IPT = CfgNode()
    cfg.TRAINER.IPT.TOKENS = 8  # k
    cfg.TRAINER.IPT.HIDDEN = 64  # h
    cfg.TRAINER.IPT.LAYER = -1  # l; -1: a third of the tower, 4 of 12
    cfg.TRAINER.IPT.PLACE = "insert"  # insert | add
    cfg.TRAINER.IPT.CTX_INIT = WORDS  # the frozen words before the class name
    cfg.TRAINER.IPT.PREC = "fp16"  # fp32, fp16, bf16, amp
    public_words(cfg, "TRAINER.IPT.CTX_INIT")
    declare_checks({f"TRAINER.IPT.{key}": whole(1) for key in ("TOKENS", "HIDDEN")})


class KeyPrompts(nn.Module):
    """An image's k prompts from its tokens, by a network of hidden width h."""

    def __init__(self, width: int, tokens: int = 8, hidden: int = 64) -> None:
        super().__init__()
        self.tokens = tokens
        self.norm = nn.LayerNorm(width)
        self.down = nn.Linear(width, hidden)
        self.conv = nn.Conv1d(hidden, hidden, 3, padding=1, groups=hidden)
        self.up = nn.Linear(hidden, width)
        nn.init.zeros_(self.up.weight)
        nn.init.zeros_(self.up.bias)

    def forward(self, patches: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(B,G²,d_v) → the prompts (B,k,d_v), and the key tokens' places (B,k)."""
        patches = patches.to(self.up.weight.dtype)
        near = F.cosine_similarity(patches, patches.mean(dim=1, keepdim=True), dim=-1)
        # In the image's order: a swap of two that are almost as near changes nothing.
        places = near.topk(self.tokens, dim=1).indices.sort(dim=1).values
        keys = patches.gather(1, places.unsqueeze(-1).expand(-1, -1, patches.shape[-1]))
        hidden = self.conv(self.down(self.norm(keys)).transpose(1, 2))
        return self.up(F.gelu(hidden).transpose(1, 2)), places


class IPTMethod(Method):
    """Image features under an image's own prompts, and frozen text features.

    Args:
        prompts: makes them.
        frozen_text: (C,D).
        layer: l.
        place: where they go, of `PLACES`.
    """

    trained_modules = ("prompts",)
    frozen_text: torch.Tensor
    image_tower_untouched = False

    def __init__(
        self,
        encoders: Encoders,
        classes: Classes,
        prompts: KeyPrompts,
        frozen_text: torch.Tensor,
        layer: int,
        place: str = "insert",
    ) -> None:
        super().__init__(encoders, classes)
        self.prompts = prompts
        self.register_buffer("frozen_text", frozen_text, persistent=False)
        self.layer = layer
        self.place = place

    @classmethod
    def from_cfg(cls, cfg: CfgNode, encoders: Encoders, classes: Classes) -> IPTMethod:
        """From all keys of TRAINER.IPT.

        Raises:
            UserError: an unknown PLACE, no such LAYER, or more TOKENS than an image has.
        """
        c, tower = cfg.TRAINER.IPT, encoders.image
        check_choice("TRAINER.IPT.PLACE", c.PLACE, PLACES)
        patches, last = tower.tokens - 1, tower.layers - 1
        if patches < c.TOKENS:
            raise UserError(f"TRAINER.IPT.TOKENS is {c.TOKENS}; an image has {patches} tokens")
        if not -1 <= c.LAYER <= last:
            raise UserError(f"TRAINER.IPT.LAYER is {c.LAYER}; the tower has layers 0 to {last}")
        layer = tower.layers // 3 if c.LAYER == -1 else c.LAYER
        template = template_of(c.CTX_INIT)
        print(f"Prompt: {template}")
        print(f"Image prompts: {c.TOKENS} per image, before layer {layer} ({c.PLACE})")
        prompts = KeyPrompts(tower.width, c.TOKENS, c.HIDDEN)
        text = encoders.text.encode(classes.sentences(template))
        return cls(encoders, classes, prompts, text, layer, c.PLACE)

    def encode_text(self) -> torch.Tensor:
        """(C,D), the frozen features."""
        return self.frozen_text

    def image_layer(self) -> int:
        """The layer whose tokens the prompts are made of."""
        return self.layer

    def encode_image(self, image: torch.Tensor) -> torch.Tensor:
        """(B,3,I,I), or (B,L,d_v) tokens before layer l → (B,D)."""
        encoder = self.encoders.image
        tokens = image if image.dim() == 3 else encoder.below(image, self.layer)
        features = encoder.above(tokens, self.layer, [self._change(tokens[:, 1:])])
        assert isinstance(features, torch.Tensor)
        return features

    def _change(self, patches: torch.Tensor) -> Tokens:
        """What p of the patches (B,G²,d_v) does to the tower."""
        prompts, places = self.prompts(patches)
        if self.place == "insert":
            return Tokens(self.layer, prompts, at=None, insert=True)
        shape = patches.shape[:2] + prompts.shape[2:]
        zeros = torch.zeros(shape, dtype=prompts.dtype, device=prompts.device)
        added = zeros.scatter(1, places.unsqueeze(-1).expand_as(prompts), prompts)
        return Tokens(self.layer, added, at=1, keep=1.0)


@TRAINER_REGISTRY.register()
class IPT(PromptTrainer):
    """Instance-wise prompts on the image side; adaptation: ours."""

    method_class = IPTMethod
    config_node = "IPT"
    claim = Claim(
        "prompts made of each image's own tokens do better than VPT's, and than CoCoOp's",
        (Row("IPT", "IPT"),),
        (Row("VPT", "VPT"), Row("CoCoOp", "CoCoOp")),
    )
